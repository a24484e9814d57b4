//! Scenes: what users and CAs did when a fault of the operator was found that only time shows, and nothing else. As the
//! operator is, each scene holds. With the fault's mend taken back (`mends/NAME.patch`) it does not.

use cert_renew_core::secret::keys;

const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;
const DAY: i64 = 86_400;

/// A scene: one Secret and its Deployment, one replica, and nothing that goes wrong by chance.
#[derive(Debug)]
pub struct Scene {
    /// Its name, and that of the patch that takes the mend back.
    pub name: &'static str,
    /// The fault.
    pub what: &'static str,
    /// Words of the check that finds the fault; none if there is no patch.
    pub words: &'static str,
    /// Seconds that the CA's certificates last in the beginning, and the age of the Secret's one.
    pub lasts: (i64, i64),
    /// Hours until the end, in which nothing may be left to do.
    pub hours: u64,
    /// Whether the CA has renewal information.
    pub has_info: bool,
    /// Whether a Deployment uses the Secret.
    pub is_used: bool,
    /// The config.
    pub config: &'static str,
    /// Annotations that the Secret has from the beginning, beside its issuer and names.
    pub annotations: &'static [(&'static str, &'static str)],
    /// What happens, and after how many seconds.
    pub deeds: &'static [(u64, Deed)],
}

/// Something that happens in a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A user annotates the Secret.
    Annotate(&'static str, &'static str),
    /// A user takes an annotation away.
    Bare(&'static str),
    /// A user empties the Secret.
    Empty,
    /// Another program puts another certificate into it.
    Replace,
    /// A user changes the config.
    Configure(&'static str),
    /// Pods of the Deployment that start from now on do not become ready.
    Break,
    /// Another program changes an annotation of the Secret every so many seconds from now on.
    Touch(u64),
    /// Another program copies the Secret, annotations and all, into another namespace, in which a Deployment uses the
    /// copy: now and every so many seconds, if it has changed.
    Copy(u64),
    /// The CA's certificates last so many seconds from now on.
    Lasts(i64),
    /// Whether the CA's validations reach the operator from now on.
    Reach(bool),
    /// The CA lists only valid authorizations in an order that is over, and null where there are none.
    Forget,
    /// The CA wants the Secret's certificate replaced at once.
    WantBack,
    /// The CA loses its accounts, orders and certificates.
    Wipe,
    /// The clock of the operator's machine is set by so many seconds.
    Clock(i64),
}

macro_rules! issuer {
    () => {
        "retry: {base: 1m}\nissuers:\n  ca: {directory: 'https://ca.test/directory', allow: [{namespaces: ['*'], names: ['**.example.com']}]}\n"
    };
}

/// The scene that most scenes differ from in a few points.
const PLAIN: Scene = Scene {
    name: "",
    what: "",
    words: "",
    lasts: (90 * DAY, DAY),
    hours: 24,
    has_info: false,
    is_used: true,
    config: issuer!(),
    annotations: &[],
    deeds: &[],
};

const ASKED: &str = "was asked for";

/// All of them.
pub static ALL: [Scene; 13] = [
    Scene {
        name: "C1",
        what: "an order that the CA has ended holds its Secret for ever",
        words: ASKED,
        hours: 12,
        deeds: &[
            (0, Deed::Forget),
            (30 * MINUTE, Deed::Reach(false)),
            (HOUR, Deed::Annotate(keys::RENEW_NOW, "force-1")),
            (3 * HOUR, Deed::Reach(true)),
            (5 * HOUR, Deed::Annotate(keys::RENEW_NOW, "force-2")),
        ],
        ..PLAIN
    },
    Scene {
        name: "B1",
        what: "certificates that end sooner are refused, not counted, and ordered again",
        words: "without a cause",
        lasts: (90 * DAY, 59 * DAY),
        hours: 72,
        deeds: &[(0, Deed::Lasts(7 * DAY))],
        ..PLAIN
    },
    Scene {
        name: "B4",
        what: "a Secret is not renewed while its rollout makes no progress",
        words: "is not renewed in the end",
        lasts: (6 * DAY, DAY),
        hours: 168,
        config: concat!(issuer!(), "rollout: {progressTimeout: 7d}\n"),
        deeds: &[(HOUR, Deed::Break)],
        ..PLAIN
    },
    Scene {
        name: "B12",
        what: "a Secret that is edited more often than `settle` is never rolled out",
        words: "rolled out in the end",
        lasts: (6 * DAY, DAY),
        hours: 72,
        deeds: &[(HOUR, Deed::Touch(5))],
        ..PLAIN
    },
    Scene {
        name: "R1",
        what: "a certificate of another issuer that is asked for is held for nine days",
        words: ASKED,
        hours: 48,
        config: concat!(
            issuer!(),
            "  second: {directory: 'https://ca.test/directory', allow: [{namespaces: ['*'], names: ['**.example.com']}]}\n"
        ),
        deeds: &[
            (HOUR, Deed::Annotate(keys::RENEW_NOW, "force-1")),
            (5 * HOUR, Deed::Annotate(keys::ISSUER, "second")),
            (6 * HOUR, Deed::Annotate(keys::RENEW_NOW, "1")),
        ],
        ..PLAIN
    },
    Scene {
        name: "R13",
        what: "a copy with the annotations of its source is never rolled out",
        words: "does not serve",
        lasts: (6 * DAY, DAY),
        hours: 72,
        is_used: false,
        config: "retry: {base: 1m}\nissuers:\n  ca: {directory: 'https://ca.test/directory', allow: [{namespaces: ['shop-*'], names: ['**.example.com']}]}\n",
        deeds: &[(HOUR, Deed::Copy(600))],
        ..PLAIN
    },
    Scene {
        name: "T1",
        what: "a solver that is mended in the config while an order is open is not looked at",
        words: ASKED,
        config: concat!(
            issuer!(),
            "solvers: [{http01: {route: ingress, ingress: {pathType: Prefix}, selfCheck: false}}]\n"
        ),
        deeds: &[
            (HOUR, Deed::Annotate(keys::RENEW_NOW, "force-1")),
            (
                3 * HOUR,
                Deed::Configure(concat!(
                    issuer!(),
                    "solvers: [{http01: {route: ingress, selfCheck: false}}]\n"
                )),
            ),
        ],
        ..PLAIN
    },
    Scene {
        name: "T5",
        what: "a change before the first sight is recorded is never rolled out",
        words: "does not serve",
        hours: 48,
        annotations: &[(keys::ISSUER, "external"), (keys::PAUSED, "true")],
        deeds: &[
            (12 * HOUR, Deed::Replace),
            (24 * HOUR, Deed::Bare(keys::PAUSED)),
        ],
        ..PLAIN
    },
    Scene {
        name: "T9",
        what: "a rollout that waits is carried out although its Secret is empty by then",
        words: "has no more",
        config: concat!(issuer!(), "rollout: {perWorkloadMinInterval: 3h}\n"),
        deeds: &[
            (HOUR, Deed::Annotate(keys::RENEW_NOW, "force-1")),
            (2 * HOUR, Deed::Annotate(keys::RENEW_NOW, "force-2")),
            (150 * MINUTE, Deed::Annotate(keys::PAUSED, "true")),
            (151 * MINUTE, Deed::Empty),
            (8 * HOUR, Deed::Bare(keys::PAUSED)),
        ],
        ..PLAIN
    },
    Scene {
        name: "T11",
        what: "a Secret without a certificate is held for a week although its certificates live for hours",
        words: "no certificate in the end",
        lasts: (DAY / 2, DAY / 24),
        hours: 11,
        has_info: true,
        deeds: &[
            (HOUR, Deed::Empty),
            (2 * HOUR, Deed::Empty),
            (3 * HOUR, Deed::Empty),
            (4 * HOUR, Deed::Empty),
        ],
        ..PLAIN
    },
    Scene {
        name: "wanted-back",
        what: "a certificate that the CA wants replaced at once is replaced once",
        has_info: true,
        hours: 48,
        deeds: &[(HOUR, Deed::WantBack)],
        ..PLAIN
    },
    Scene {
        name: "wiped",
        what: "a CA that has lost its accounts and orders is asked by a new account",
        deeds: &[
            (HOUR, Deed::Annotate(keys::RENEW_NOW, "force-1")),
            (2 * HOUR, Deed::Reach(false)),
            (3 * HOUR, Deed::Annotate(keys::RENEW_NOW, "force-2")),
            (3 * HOUR + MINUTE, Deed::Wipe),
            (4 * HOUR, Deed::Reach(true)),
            (5 * HOUR, Deed::Annotate(keys::RENEW_NOW, "force-3")),
        ],
        ..PLAIN
    },
    Scene {
        name: "clock-ahead",
        what: "a clock that is seventy days ahead for a day costs one certificate",
        hours: 72,
        deeds: &[
            (HOUR, Deed::Clock(70 * DAY)),
            (25 * HOUR, Deed::Clock(-70 * DAY)),
        ],
        ..PLAIN
    },
];

/// The scene of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scene> {
    ALL.iter().find(|scene| scene.name == name)
}
