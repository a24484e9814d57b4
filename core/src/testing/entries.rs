//! An index with one Secret in each state.

use std::time::Duration;

use crate::certificate::Fingerprint;
use crate::index::{Finished, Index, LeafFacts, NoLeaf, Observed, Shown, Source, Stuck};
use crate::schedule::due::{AT_ONCE, AriPolicy, Due, Never, Reason, Suggestion};
use crate::secret::SecretRef;
use crate::secret::parts::ChainAndCa;
use crate::secret::settings::Blocks;
use crate::secret::state::RolledOut;
use crate::time::UnixTime;

const DAY: Duration = Duration::from_secs(86_400);
/// The instant of the index.
pub const NOW: UnixTime = UnixTime(1_700_000_000);
/// The account of the due ones.
pub const FAILING: u64 = 1;
const OLD: Fingerprint = Fingerprint([1; 32]);

/// A certificate of ninety days, thirty of them past, renewed at sixty, rolled out.
pub fn healthy() -> Observed {
    let leaf = leaf(30, 60);
    Observed {
        uid: "u".into(),
        resource_version: "1".into(),
        issuer: "letsencrypt".into(),
        leaf: Ok(leaf),
        rolled_out: Some(has(leaf.fingerprint)),
        renewal: Ok(Due {
            at: NOW + DAY * 30,
            reason: Reason::Lifetime,
        }),
        heed: AriPolicy::Any,
        suggestion: Suggestion::None,
        window: None,
        wish: None,
        account: 0.into(),
        rollout_blocked: false,
        pauses_itself: false,
        blocked: Blocks::Nothing,
        held_until: None,
        copied_record: false,
        halted: false,
        renewed: Some(NOW - DAY * 30),
        problems: 0,
        problem_texts: 0,
    }
}

/// A leaf of that age, with this number of days left.
pub fn leaf(age: u32, left: u32) -> LeafFacts {
    LeafFacts {
        fingerprint: Fingerprint([2; 32]),
        not_before: NOW - DAY * age,
        not_after: NOW + DAY * left,
        with: ChainAndCa::NONE,
    }
}

fn has(fingerprint: Fingerprint) -> RolledOut {
    RolledOut::Leaf {
        fingerprint,
        not_after: NOW + DAY,
        with: Some(ChainAndCa::NONE),
    }
}

fn due() -> Observed {
    Observed {
        leaf: Ok(leaf(65, 25)),
        renewal: Ok(Due {
            at: NOW - DAY,
            reason: Reason::Lifetime,
        }),
        account: FAILING.into(),
        ..healthy()
    }
}

fn without_leaf(fault: NoLeaf) -> Observed {
    Observed {
        leaf: Err(fault),
        rolled_out: Some(RolledOut::None),
        renewal: Ok(Due {
            at: AT_ONCE,
            reason: Reason::NoCertificate,
        }),
        ..healthy()
    }
}

fn unrolled() -> Observed {
    Observed {
        rolled_out: Some(has(OLD)),
        ..healthy()
    }
}

/// The index.
pub fn index() -> Index {
    let mut index = Index::default();
    let expired = LeafFacts {
        not_after: NOW - DAY,
        ..leaf(91, 0)
    };
    let fails = |index: &mut Index, name: &str, observed: Observed| {
        let key = add(index, name, observed);
        while let Some((task, taken)) = index.pop_due(NOW) {
            let finished = match name {
                _ if taken != key => Finished::Later(NOW + DAY, None),
                "failing-rollout" => Finished::Stale(NOW + DAY, 2, "no".into()),
                "incomplete" => Finished::Incomplete(NOW + DAY, 1, "no".into()),
                "failing" => Finished::Stuck(NOW + DAY, Stuck::Paused, "no".into()),
                _ => Finished::Later(NOW + DAY, Some("no".into())),
            };
            index.finished(NOW, (task, &taken), finished, Duration::ZERO, None);
        }
    };
    fails(&mut index, "failing", due());
    fails(&mut index, "failing-rollout", unrolled());
    fails(&mut index, "incomplete", unrolled());
    let key = add(&mut index, "healthy", healthy());
    let shown = Shown {
        names: "shop.example".into(),
        used_by: Some(
            "2023-11-14T22:13:20Z deployment/api=failed statefulset/db +2 web:443=2/3".into(),
        ),
        account: Some("https://ca.example/acct/7".into()),
        ..Shown::default()
    };
    index.show(&key, shown);
    add(&mut index, "due", due());
    add(&mut index, "absent", without_leaf(NoLeaf::Absent));
    add(&mut index, "garbled", without_leaf(NoLeaf::Unreadable));
    add(&mut index, "rolling", unrolled());
    let six_days = Observed {
        leaf: Ok(leaf(1, 5)),
        renewal: Ok(Due {
            at: NOW + DAY * 2,
            reason: Reason::Lifetime,
        }),
        ..healthy()
    };
    add(&mut index, "six-days", six_days);
    let expired = Observed {
        leaf: Ok(expired),
        ..due()
    };
    add(&mut index, "expired", expired);
    let paused = Observed {
        renewal: Err(Never::Paused),
        ..healthy()
    };
    add(&mut index, "paused", paused);
    let nameless = Observed {
        renewal: Err(Never::NoNames),
        ..healthy()
    };
    add(&mut index, "nameless", nameless);
    let first_sight = Observed {
        rolled_out: None,
        ..healthy()
    };
    add(&mut index, "first-sight", first_sight);
    let halted = Observed {
        halted: true,
        ..unrolled()
    };
    let key = add(&mut index, "halted", halted);
    let shown = Shown {
        since: Some("rollout_failing 2023-11-13T22:13:20Z".into()),
        ..Shown::default()
    };
    index.show(&key, shown);
    let windowed = Observed {
        window: Some(NOW + DAY),
        ..unrolled()
    };
    add(&mut index, "windowed", windowed);
    let odd = Observed {
        issuer: "a\"b\\c\nd".into(),
        renewal: Err(Never::External),
        problems: 2,
        renewed: None,
        ..healthy()
    };
    let key = add(&mut index, "odd", odd);
    let problems = ["key-type", "verify"];
    let problems = problems.map(|it| format!("cert-renew.io/{it}: \"x\": expected another"));
    index.tell_problems(&key, &problems);
    let external = Observed {
        leaf: Ok(leaf(85, 5)),
        renewal: Err(Never::External),
        ..healthy()
    };
    add(&mut index, "expiring", external);
    let young = leaf(1, 89);
    let held = Observed {
        leaf: Ok(young),
        renewal: Ok(Due {
            at: AT_ONCE,
            reason: Reason::RenewNow,
        }),
        heed: AriPolicy::Nothing,
        wish: Some(1),
        held_until: Some(NOW + DAY * 8),
        ..healthy()
    };
    add(&mut index, "held", held);
    let misread = Observed {
        blocked: Blocks::Issue,
        problems: 1,
        heed: AriPolicy::Nothing,
        ..healthy()
    };
    add(&mut index, "misread", misread);
    index
}

/// Adds a Secret of the namespace `shop`.
pub fn add(index: &mut Index, name: &str, observed: Observed) -> SecretRef {
    let key = index.key("shop", name);
    index.apply(NOW, &key, observed, Source(0), Duration::ZERO, None);
    key
}
