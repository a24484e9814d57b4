//! Whether all comes right from a state once the faults stop.
//!
//! Everybody takes turns, and time passes only where nothing else can happen. A run ends where it comes to a state from
//! which all is known to come right, so that the runs of all states together are about as long as the states are many.
//! As every state of every order of events is looked at, nothing depends on the turns.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::PoisonError;

use crate::protocol::{Action, Faults, Protocol, STRAYS, State};

/// Most rounds of a run.
const ROUNDS: usize = 300;
/// So many seconds without anything else mean that nothing more will happen.
const QUIET: usize = 8;

fn hash(state: &State) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(state)
}

/// Everything that happens without a fault, time apart.
fn turns() -> impl Iterator<Item = Action> {
    let late = (0..STRAYS).map(|_| Action::Late(0));
    let replicas = [0, 1].into_iter().flat_map(|me| {
        [
            Action::Start(me),
            Action::Elect(me),
            Action::SeeLease(me),
            Action::Open(me),
            Action::SeeSecret(me),
            Action::Renew(me),
            Action::Renewal(me),
            Action::Roll(me),
            Action::Rollout(me),
        ]
    });
    late.chain(replicas).chain([Action::Replace])
}

/// Whether all comes right from here.
pub(crate) fn comes_right(model: &Protocol, state: &State) -> bool {
    // It is told by another property.
    if !model.settles || state.bad.is_some() || state.issued > state.wishes {
        return true;
    }
    let mut now = state.clone();
    now.left = Faults {
        pauses: u8::MAX,
        ..Faults::default()
    };
    let (mut passed, mut quiet, mut terms) = (Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let here = hash(&now);
        let mut settled = model.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.contains(&here) || now.is_done(&model.core) {
            settled.extend(passed);
            settled.insert(here);
            return true;
        }
        drop(settled);
        passed.push(here);
        let (mut moved, mut worked) = (false, false);
        for action in turns() {
            let mut next = now.clone();
            if model.act(&mut next, action).is_some() && next != now {
                moved = true;
                worked |= !matches!(action, Action::Elect(_) | Action::SeeLease(_));
                now = next;
            }
        }
        if now.issued > now.wishes {
            return false;
        }
        if worked {
            quiet = 0;
        }
        if !moved {
            quiet += 1;
            model.act(&mut now, Action::Tick);
            now.left.pauses = u8::MAX;
        }
        // A record that came late, when its order was over, is found by the next leader.
        if quiet > QUIET && terms == 0 && now.is_left_behind(&model.core) {
            (terms, quiet) = (1, 0);
            let leader = [0, 1].into_iter().find(|me| now.leads(*me));
            if let Some(leader) = leader {
                model.give_back(&mut now, leader);
            }
        }
    }
    false
}
