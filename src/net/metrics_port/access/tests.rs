use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;
use tokio::sync::Notify;

use super::*;

fn question(token: &str) -> Question {
    Question {
        token: token.to_owned().into(),
        audience: None,
        wanted: Wanted::Page,
    }
}

fn doorkeeper(
    review: impl Fn(Question) -> BoxFuture<'static, Result<Verdict, String>> + Send + Sync + 'static,
) -> Arc<Doorkeeper> {
    let metrics = Arc::new(Metrics::new().unwrap());
    Arc::new(Doorkeeper::new(Arc::new(review), metrics))
}

/// Knows the tokens that begin with `good` and `poor`, and counts the reviews.
fn counting() -> (Arc<Doorkeeper>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let doorkeeper = doorkeeper(move |question| {
        counted.fetch_add(1, Ordering::SeqCst);
        let verdict = match &**question.token {
            it if it.starts_with("good") => Ok(Verdict::Allowed),
            it if it.starts_with("poor") => Ok(Verdict::Forbidden("no".into())),
            it if it.starts_with("fails") => Err("no answer".into()),
            _ => Ok(Verdict::Unknown),
        };
        async move { verdict }.boxed()
    });
    (doorkeeper, count)
}

const SOMEWHERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
const ELSEWHERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

#[tokio::test]
async fn an_answer_is_kept_for_a_token_and_what_it_is_shown_for_and_no_failure_is() {
    let (doorkeeper, count) = counting();
    let forbidden = Judged::By(Verdict::Forbidden("no".into()));
    for _ in 0..3 {
        let judge = async |token| doorkeeper.judge(SOMEWHERE, question(token)).await;
        assert_eq!(judge("good").await, Judged::By(Verdict::Allowed));
        assert_eq!(judge("poor").await, forbidden);
        assert_eq!(judge("else").await, Judged::By(Verdict::Unknown));
    }
    assert_eq!(count.load(Ordering::SeqCst), 3);
    for different in [
        Question {
            wanted: Wanted::Metrics,
            ..question("good")
        },
        Question {
            audience: Some(AUDIENCE),
            ..question("good")
        },
    ] {
        doorkeeper.judge(SOMEWHERE, different).await;
    }
    assert_eq!(count.load(Ordering::SeqCst), 5);
    for _ in 0..2 {
        let judged = doorkeeper.judge(SOMEWHERE, question("fails")).await;
        assert_eq!(judged, Judged::Failed);
    }
    assert_eq!(count.load(Ordering::SeqCst), 7);
}

#[test]
fn an_answer_is_kept_for_so_long_and_so_many_are() {
    let at = |seconds| BootTime(Duration::from_secs(seconds));
    let mut answers = Answers::default();
    let key = |number: usize| {
        let mut key = Key::default();
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    };
    answers.keep(key(0), at(0), Verdict::Allowed);
    answers.keep(key(1), at(0), Verdict::Unknown);
    assert_eq!(answers.of(&key(0), at(59)), Some(Verdict::Allowed));
    assert_eq!(answers.of(&key(0), at(60)), None);
    assert_eq!(answers.of(&key(1), at(9)), Some(Verdict::Unknown));
    assert_eq!(answers.of(&key(1), at(10)), None);
    // A no replaces a yes.
    answers.keep(key(0), at(60), Verdict::Unknown);
    assert_eq!(answers.of(&key(0), at(61)), Some(Verdict::Unknown));
    answers.keep(key(0), at(70), Verdict::Allowed);
    // Refused ones push out no others.
    for number in 2..5 * KEPT {
        answers.keep(key(number), at(70), Verdict::Unknown);
    }
    assert_eq!(answers.of(&key(0), at(71)), Some(Verdict::Allowed));
    assert_eq!(answers.refused.len(), KEPT);
    for number in 2..5 * KEPT {
        answers.keep(key(number), at(71), Verdict::Allowed);
    }
    assert_eq!(answers.allowed.len(), KEPT);
}

#[tokio::test]
async fn who_shows_many_tokens_is_told_to_wait_and_no_other_is() {
    let (doorkeeper, count) = counting();
    let good = async || doorkeeper.judge(SOMEWHERE, question("good")).await;
    assert_eq!(good().await, Judged::By(Verdict::Allowed));
    let mut busy = 0;
    for number in 0..1_000 {
        let judged = doorkeeper.judge(SOMEWHERE, question(&format!("guess-{number}")));
        busy += usize::from(judged.await == Judged::Busy);
    }
    assert!(busy > 900, "{busy}");
    let reviewed = count.load(Ordering::SeqCst);
    assert!(reviewed < 100, "{reviewed}");
    // A token that was good before is reviewed again, whatever the others at its address do.
    let past = BootTime(Duration::ZERO);
    for until in lock(&doorkeeper.answers).allowed.values_mut() {
        *until = past;
    }
    assert_eq!(good().await, Judged::By(Verdict::Allowed));
    assert_eq!(count.load(Ordering::SeqCst), reviewed + 1);
    let other = doorkeeper.judge(ELSEWHERE, question("good-too")).await;
    assert_eq!(other, Judged::By(Verdict::Allowed));
}

#[tokio::test]
async fn few_tokens_are_reviewed_at_a_time_and_few_wait() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let go = Arc::new(Notify::new());
    let doorkeeper = doorkeeper({
        let (running, most, go) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&go));
        move |_| {
            let (running, most, go) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&go));
            async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                go.notified().await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(Verdict::Unknown)
            }
            .boxed()
        }
    });
    let all: Vec<_> = (0..200_u8)
        .map(|number| {
            let doorkeeper = Arc::clone(&doorkeeper);
            let address = Some(IpAddr::from([10, 0, 1, number]));
            tokio::spawn(async move {
                let question = question(&format!("guess-{number}"));
                doorkeeper.judge(address, question).await
            })
        })
        .collect();
    let (mut busy, mut judged) = (0, 0);
    for task in all {
        // Each that is reviewed lets another one in.
        while !task.is_finished() {
            go.notify_one();
            tokio::task::yield_now().await;
        }
        match task.await.unwrap() {
            Judged::Busy => busy += 1,
            _ => judged += 1,
        }
    }
    assert!(most.load(Ordering::SeqCst) <= REVIEWS);
    assert_eq!(busy + judged, 200);
    assert!(judged >= WAITING && busy > 0, "{judged} {busy}");
}

#[tokio::test]
async fn many_addresses_together_have_one_allowance() {
    let (doorkeeper, _) = counting();
    let mut busy = 0;
    for number in 0..4 * FROM_ALL {
        let [.., c, d] = number.to_be_bytes();
        let address = Some(IpAddr::from([10, 9, c, d]));
        let judged = doorkeeper.judge(address, question(&format!("guess-{number}")));
        busy += u32::from(judged.await == Judged::Busy);
    }
    assert!(busy > FROM_ALL, "{busy}");
}

#[tokio::test]
async fn a_token_that_was_good_needs_no_place_among_those_that_wait() {
    let (doorkeeper, count) = counting();
    let good = async || doorkeeper.judge(SOMEWHERE, question("good")).await;
    assert_eq!(good().await, Judged::By(Verdict::Allowed));
    // All places are taken, and the answer is of yesterday.
    let waiting = doorkeeper
        .waiting
        .try_acquire_many(u32::try_from(WAITING).unwrap());
    waiting.unwrap().forget();
    for until in lock(&doorkeeper.answers).allowed.values_mut() {
        *until = BootTime(Duration::ZERO);
    }
    assert_eq!(good().await, Judged::By(Verdict::Allowed));
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn a_token_is_taken_from_the_header_that_is_meant_for_it() {
    let ours = format!(
        "e30.{}.c2ln",
        URL_SAFE_NO_PAD.encode(format!("{{\"aud\":[\"a\",\"{AUDIENCE}\"]}}"))
    );
    let one = format!(
        "e30.{}.c2ln",
        URL_SAFE_NO_PAD.encode(format!("{{\"aud\":\"{AUDIENCE}\"}}"))
    );
    let (basic, bearer) = ("Basic YTpi".to_owned(), |token: &str| {
        format!("Bearer {token}")
    });
    for (headers, expected) in [
        (vec![("authorization", bearer("a.b.c"))], Some(None)),
        (
            vec![("authorization", "bearer  opaque=".to_owned())],
            Some(None),
        ),
        (vec![("authorization", bearer(&ours))], Some(Some(AUDIENCE))),
        (vec![("authorization", bearer(&one))], Some(Some(AUDIENCE))),
        (
            vec![("cert-renew-token", "a.b.c".into())],
            Some(Some(AUDIENCE)),
        ),
        (vec![], None),
        (vec![("authorization", basic)], None),
        (vec![("authorization", bearer(""))], None),
        (vec![("authorization", bearer("a b"))], None),
        (vec![("authorization", bearer("a\"b"))], None),
        (
            vec![("authorization", bearer(&"x".repeat(LONGEST + 1)))],
            None,
        ),
        (
            vec![
                ("authorization", bearer("a")),
                ("authorization", bearer("b")),
            ],
            None,
        ),
        // What a proxy in front may say is nothing to us.
        (vec![("x-remote-user", "admin".into())], None),
        (vec![("x-forwarded-access-token", "a.b.c".into())], None),
    ] {
        let mut map = HeaderMap::new();
        for (name, value) in &headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let found = shown(&map).map(|(_, audience)| audience);
        assert_eq!(found, expected, "{headers:?}");
    }
}
