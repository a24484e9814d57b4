use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use kube::client::Body;
use tower::service_fn;

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn ids<const N: usize>(ids: [u64; N]) -> BTreeSet<AccountId> {
    ids.map(AccountId::from).into()
}

fn failed(ago: u64, namespace: &str) -> IssuanceHistory {
    let at = Some((NOW - Duration::from_secs(ago)).0);
    IssuanceHistory {
        failures: 1,
        retry_at: at,
        failed_at: at,
        namespace: Some(namespace.into()),
        ..IssuanceHistory::default()
    }
}

fn state(accounts: impl IntoIterator<Item = (u64, IssuanceHistory)>) -> State {
    let accounts = accounts.into_iter();
    let mut state = State {
        accounts: accounts.map(|(id, account)| (id.into(), account)).collect(),
        ..State::default()
    };
    let ids: Vec<AccountId> = state.accounts.keys().copied().collect();
    for id in ids {
        let text = state.text(id);
        state.sized(id, text.as_deref());
    }
    state
}

#[test]
fn what_is_over_is_swept_and_nothing_else() {
    let week = 7 * 86_400;
    let ages = [0, week - 1, week, 10 * week];
    let mut state = state((1..).zip(ages.map(|age| failed(age, "shop"))));
    state.sweep(&ids([4]), NOW);
    assert_eq!(state.unwritten, ids([3]));
    state.sweep(&ids([1]), NOW);
    assert_eq!(state.unwritten, ids([3, 4]));
    let left: BTreeSet<AccountId> = state.accounts.into_keys().collect();
    assert_eq!(left, ids([1, 2]));
    let mut many = self::state((0..1_000).map(|id| (id, failed(week, "shop"))));
    many.sweep(&ids([0]), NOW);
    assert_eq!(many.unwritten.len(), SWEPT);
}

#[test]
fn a_namespace_that_fills_the_ledger_loses_its_own_oldest_entries_and_nobody_elses() {
    let few = (0..50).map(|id| (id, failed(1_000_000 - id, "few")));
    let mut state = state(few);
    let mut id = 1_000;
    while state.bytes <= MOST_BYTES {
        state
            .accounts
            .insert(id.into(), failed(600_000 - id, "many"));
        let text = state.text(id.into());
        state.sized(id.into(), text.as_deref());
        id += 1;
    }
    let before = state.sizes.len();
    state.make_room(&ids([1_000]), NOW);
    assert_eq!(state.sizes.len(), before - SWEPT);
    assert!(state.bytes <= MOST_BYTES);
    let gone: Vec<AccountId> = state.unwritten.iter().copied().collect();
    let oldest: Vec<AccountId> = (1_001..).map(AccountId::from).take(SWEPT).collect();
    assert_eq!(gone, oldest, "but for the one that is being changed");
    let sum: usize = state.sizes.values().sum();
    assert_eq!(state.bytes, sum);
}

#[test]
fn what_is_written_is_what_memory_holds_when_the_write_begins() {
    let mut state = State::default();
    let failures = |count| {
        move |_: AccountId, account: &mut IssuanceHistory| {
            account.failures = count;
            account.retry_at = (count > 0).then_some(NOW.0 * 2);
        }
    };
    assert!(state.change("shop", ids([1]), failures(1)));
    assert!(state.change("shop", ids([1, 2]), failures(2)));
    let unwritten = std::mem::take(&mut state.unwritten);
    let values = state.values(&unwritten);
    assert_eq!(values.len(), 2);
    for value in values.into_values() {
        assert!(value.unwrap().contains(r#""failures":2"#));
    }
    assert!(
        !state.change("shop", ids([1]), failures(2)),
        "nothing is new"
    );
    assert!(
        !state.change("pay", ids([1]), failures(2)),
        "nor by another"
    );
    assert!(state.change("shop", ids([1]), failures(0)));
    let values = state.values(&state.unwritten);
    assert_eq!(values.into_values().collect::<Vec<_>>(), [None]);
    assert!(!state.accounts.contains_key(&1.into()) && !state.sizes.contains_key(&1.into()));
}

#[test]
fn an_account_of_an_earlier_version_counts_and_is_renamed_by_its_next_change() {
    let id = AccountId::of("le\nshop.example");
    let mut state = State::default();
    state.accounts.insert(id.former(), failed(10, "shop"));
    assert_eq!(state.find(id).map(|account| account.failures), Some(1));
    let other = AccountId::of("le\npay.example");
    assert_eq!(state.find(other), None);
    assert!(state.change("shop", [id], |_, account| account.failures += 1));
    assert_eq!(state.find(id).map(|account| account.failures), Some(2));
    assert!(!state.accounts.contains_key(&id.former()));
    let values = state.values(&state.unwritten);
    let written: Vec<(usize, bool)> = { values.iter() }
        .map(|(key, value)| (key.len(), value.is_some()))
        .collect();
    assert_eq!(values.len(), 2, "{values:?}");
    assert!(written.contains(&(16, false)) && written.contains(&(32, true)));
}

#[test]
fn an_account_has_128_bits_in_the_ledger() {
    let id = AccountId::of("le\nshop.example");
    assert_eq!(id.to_string().len(), 32);
    assert_eq!(id.to_string().parse::<AccountId>().ok(), Some(id));
    let former = id.former();
    assert_eq!(id.to_string()[..16], former.to_string());
    assert_eq!(former.to_string().parse::<AccountId>().ok(), Some(former));
    for odd in ["", "7", "g123456789abcdef", "0123456789abcdef0"] {
        assert!(odd.parse::<AccountId>().is_err(), "{odd}");
    }
}

/// Two writes in flight could land in the wrong order.
#[tokio::test(start_paused = true)]
async fn one_write_runs_at_a_time_and_the_last_has_what_memory_holds() {
    let (running, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
    let (at_most, written) = (Arc::clone(&most), Arc::clone(&bodies));
    let server = service_fn(move |request: Request<Body>| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&at_most));
        let written = Arc::clone(&written);
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            let body = request
                .into_body()
                .collect_bytes()
                .await
                .unwrap_or_default();
            { written.lock() }.push(String::from_utf8_lossy(&body).into_owned());
            running.fetch_sub(1, Ordering::SeqCst);
            let map = br#"{"metadata": {"name": "ledger"}}"#.to_vec();
            Ok::<_, Infallible>(Response::new(Body::from(map)))
        }
    });
    let ledger = Ledger::new(&Client::new(server, "cert-renew"), "cert-renew");
    let changes = (1..=5).map(|failures| {
        ledger.update("shop", 1.into(), move |account| {
            account.failures = failures;
            account.retry_at = Some(NOW.0 * 2);
        })
    });
    for written in futures::future::join_all(changes).await {
        written.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    let bodies = bodies.lock();
    let last = bodies.last().unwrap();
    assert!(last.contains(r#"\"failures\":5"#), "{last}");
    assert!(
        bodies.len() < 5,
        "a writer writes what others have changed meanwhile"
    );
}
