//! The next thing to do, as a command.

use super::*;
use crate::index::Observed;
use crate::schedule::due::{Due, Reason};
use crate::secret::declared::DeclaredBy;
use crate::secret::object::head::Head;
use crate::secret::object::keepers::Keeper;

/// The commands that would not help, or would do harm, are not named.
#[test]
fn the_next_thing_to_do_fits_the_cause() {
    let next = |change: fn(&mut Observed), error: Option<&str>| {
        let mut index = Index::default();
        let mut observed = entries::healthy();
        change(&mut observed);
        let key = entries::add(&mut index, "tls", observed);
        index.recall(&key, error, None);
        let (row, _) = index.iter().next().unwrap();
        Verdict::of_row(NOW, &index, row, 0).unwrap().next
    };
    let expired = |it: &mut Observed| {
        it.leaf = Ok(entries::leaf(91, 0));
        it.renewal = Err(Never::External);
    };
    let owned = |it: &mut Observed| it.renewal = Err(Never::OwnedByAnother);
    for change in [expired, owned] {
        let said = next(change, None).unwrap();
        assert!(
            said.contains("managedFields") && !said.contains("annotate"),
            "{said}"
        );
    }
    // It is the annotation that says so: what else writes it has gone, or goes first.
    for (keeper, expected) in [
        (
            Keeper::CertManager,
            "kubectl -n shop annotate secret tls --overwrite cert-manager.io/certificate-name-",
        ),
        (Keeper::Owner("SealedSecret tls".into()), "managedFields"),
    ] {
        let mut head = Head::default();
        head.keeper = Some(keeper);
        let (never, problem) = assess::left_alone(&head).unwrap();
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        (observed.renewal, observed.problems) = (Err(never), 1);
        let key = entries::add(&mut index, "tls", observed);
        index.tell_problems(&key, &[problem.to_string()]);
        let (row, _) = index.iter().next().unwrap();
        let said = Verdict::of_row(NOW, &index, row, 0).unwrap().next.unwrap();
        assert!(said.contains(expected), "{said}");
    }
    let said = next(|it| it.renewal = Err(Never::Immutable), None).unwrap();
    assert!(said.contains("kubectl replace --force"), "{said}");
    let said = next(|it| it.renewal = Err(Never::Undeclared), None).unwrap();
    assert!(
        said.ends_with("annotate secret tls --overwrite cert-renew.io/declared-"),
        "{said}"
    );
    let said = next(|it| it.renewal = Err(Never::AllPaused), None).unwrap();
    assert!(said.ends_with("edit configmap cert-renew-config"), "{said}");
    // By the labels of the namespace, which only a renewal reads.
    let refused = "cert-renew.io/names: \"a.test\": expected names that issuers.le.allow of the config grants";
    let due = |it: &mut Observed| {
        it.renewal = Ok(Due {
            at: NOW,
            reason: Reason::Lifetime,
        });
    };
    assert_eq!(
        next(due, Some(refused)).as_deref(),
        Some("cert-renew names -n shop")
    );
    let said = next(due, Some("the CA says no")).unwrap();
    assert!(said.contains("plan --preflight"), "{said}");
}

/// What is changed on a declared Secret itself is put back.
#[test]
fn a_setting_is_changed_where_it_comes_from() {
    let next = |declared: Option<(&[&str], bool)>, never: Never| {
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        observed.renewal = Err(never);
        let key = entries::add(&mut index, "tls", observed);
        let declared = declared.map(|(objects, pauses)| {
            let objects = objects.iter().map(|it| (*it).into()).collect();
            Box::new(DeclaredBy { objects, pauses })
        });
        index.show(
            &key,
            Shown {
                declared,
                ..Shown::default()
            },
        );
        let (row, _) = index.iter().next().unwrap();
        Verdict::of_row(NOW, &index, row, 0).unwrap().next.unwrap()
    };
    let (one, two) = (&["configmap/a"][..], &["configmap/a", "configmap/b"][..]);
    let route = &["ingress/a"][..];
    for (declared, never, expected) in [
        (
            None,
            Never::NotAllowed,
            "annotate secret tls --overwrite cert-renew.io/names=NAMES",
        ),
        (
            Some((one, false)),
            Never::NotAllowed,
            "annotate configmap/a --overwrite cert-renew.io/names=NAMES",
        ),
        (
            Some((two, false)),
            Never::UnknownIssuer,
            "get configmap/a configmap/b -o yaml",
        ),
        (
            Some((one, true)),
            Never::Paused,
            "annotate configmap/a --overwrite cert-renew.io/paused-",
        ),
        // Its names are hosts of its TLS entries.
        (Some((route, false)), Never::NotAllowed, "edit ingress/a"),
        (
            Some((route, false)),
            Never::UnknownIssuer,
            "annotate ingress/a --overwrite cert-renew.io/issuer=ISSUER",
        ),
        // By somebody on the Secret.
        (
            Some((one, false)),
            Never::Paused,
            "annotate secret tls --overwrite cert-renew.io/paused-",
        ),
    ] {
        assert_eq!(
            &*next(declared, never),
            format!("kubectl -n shop {expected}")
        );
    }
}

/// A misspelt annotation stands on the Secret: what declares it gives it none.
#[test]
fn a_misspelt_annotation_is_taken_from_the_secret_itself() {
    let next = |problem: &str, declared: bool| {
        let (mut index, mut observed) = (Index::default(), entries::healthy());
        observed.problems = 1;
        let key = entries::add(&mut index, "tls", observed);
        index.tell_problems(&key, &[problem.to_owned()]);
        let declared = declared.then(|| {
            let objects = Box::new(["configmap/a".into()]);
            let pauses = false;
            Box::new(DeclaredBy { objects, pauses })
        });
        index.show(
            &key,
            Shown {
                declared,
                ..Shown::default()
            },
        );
        let (row, _) = index.iter().next().unwrap();
        Verdict::of_row(NOW, &index, row, 0).unwrap().next.unwrap()
    };
    let misspelt = "cert-renew.io/isuer: \"le\": expected a known annotation; did you mean cert-renew.io/issuer?";
    let unread = "cert-renew.io/key-type: \"dsa\": expected ecdsa-p256";
    for (problem, declared, expected) in [
        (
            misspelt,
            false,
            "secret tls --overwrite cert-renew.io/isuer-",
        ),
        (
            misspelt,
            true,
            "secret tls --overwrite cert-renew.io/isuer-",
        ),
        (
            unread,
            false,
            "secret tls --overwrite cert-renew.io/key-type=VALUE",
        ),
        (
            unread,
            true,
            "configmap/a --overwrite cert-renew.io/key-type=VALUE",
        ),
    ] {
        assert_eq!(
            &*next(problem, declared),
            format!("kubectl -n shop annotate {expected}"),
            "{declared}"
        );
    }
}

#[test]
fn a_command_names_the_namespace_of_an_operator_that_it_would_not_find() {
    for (namespace, command, expected) in [
        (
            NAMESPACE,
            "cert-renew names -n shop",
            "cert-renew names -n shop",
        ),
        (
            "ops",
            "cert-renew names -n shop",
            "cert-renew names -n shop --operator-namespace ops",
        ),
        (
            "ops",
            "kubectl -n shop describe deployment/web",
            "kubectl -n shop describe deployment/web",
        ),
        (
            "ops",
            "kubectl -n OPERATOR-NAMESPACE edit configmap cert-renew-config",
            "kubectl -n ops edit configmap cert-renew-config",
        ),
    ] {
        let mut verdict = verdict("healthy");
        verdict.next = Some(command.into());
        verdict.name_operator(namespace);
        assert_eq!(verdict.next.as_deref(), Some(expected));
    }
}
