//! Very many Secrets of one namespace: in trouble, in one workload, and with certificates that no CA has made.

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use test_bench::Result;
use test_bench::certificates::{DAY, Template, TestCa};
use test_bench::objects::{FRESH, Reference, Space, pair, workload};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::attack::{PAUSE, annotate, create};

/// Secrets that have no certificate, may have none, name a Service that is not there, and have a misspelt annotation.
const IN_TROUBLE: usize = 1_000;
/// Secrets that one Deployment uses, each with annotations as long as they are read. A template has room for as many
/// certificates of its Secrets, in 256 KiB of annotations.
const OF_ONE: usize = 1_500;
/// Workloads that each of them names, those of them that exist, and those that it says use it.
const NAMED: usize = 100;
const PRESENT: usize = 60;
const USERS: usize = 64;
/// Octets of serial numbers: a CA makes no more than 20.
const SERIALS: [usize; 6] = [65, 100, 1_000, 10_000, 60_000, 200_000];
/// Objects that are made at the same time.
const AT_ONCE: usize = 8;

/// Makes all of them; what is forged goes on for as long as the set lives.
pub(super) async fn begin(space: &Space, tasks: &mut JoinSet<()>) -> Result<()> {
    in_trouble(space).await?;
    of_one_workload(space).await?;
    long_serials(space).await?;
    let secrets = space.secrets();
    tasks.spawn(async move {
        for number in 0_usize.. {
            // Said to be used by another one each time, and to be rolled out again.
            let state = json!({"state.cert-renew.io/used-by": users(number)});
            let troubled = format!("trouble-{}", number % IN_TROUBLE);
            annotate(&secrets, &troubled, &state).await;
            let state = json!({
                "state.cert-renew.io/used-by": users(number), "state.cert-renew.io/rolled-out": "none"});
            annotate(&secrets, &format!("one-{}", number % OF_ONE), &state).await;
            sleep(PAUSE).await;
        }
    });
    Ok(())
}

/// A name as long as names may be.
fn long(number: usize) -> String {
    format!("deployment/{number:05}{}", "w".repeat(248))
}

/// A forged `used-by`, of workloads that lack the certificate.
fn users(number: usize) -> String {
    let all = (0..USERS).map(|user| format!(" {}=unavailable", long(number + user)));
    format!("2026-11-14T22:13:20Z{}", all.collect::<String>())
}

async fn in_trouble(space: &Space) -> Result<()> {
    let made = futures::stream::iter(0..IN_TROUBLE).map(async |number| {
        let names = format!("n{number}.elsewhere.example");
        let annotations = [
            ("issuer", "pebble"),
            ("names", &*names),
            ("verify", "nowhere:443"),
            ("isuer", "pebble"),
            ("state.cert-renew.io/used-by", &*users(number)),
        ];
        let secret = format!("trouble-{number}");
        space.tls_secret(&secret, None, &annotations).await
    });
    let made = made.buffer_unordered(AT_ONCE);
    made.try_for_each(async |_| Ok(())).await?;
    eprintln!("hostile: {IN_TROUBLE} Secrets in trouble");
    Ok(())
}

async fn of_one_workload(space: &Space) -> Result<()> {
    let fresh = pair(&["one.h.example"], FRESH)?;
    // The shorter a name, the less is counted before the workloads are listed.
    let present: Vec<String> = (0..PRESENT).map(|number| format!("w{number}")).collect();
    for name in &present {
        create(
            space,
            workload("Deployment", name, 0, Reference::Volume, "one-0"),
        )
        .await?;
    }
    let missing = (PRESENT..NAMED).map(long);
    let named = present.iter().map(|name| format!("deployment/{name}"));
    let named: Vec<String> = named.chain(missing).collect();
    let named = named.join(",");
    let made = futures::stream::iter(0..OF_ONE).map(async |number| {
        let annotations = [
            ("issuer", "external"),
            ("workloads", &*named),
            ("state.cert-renew.io/used-by", &*users(number)),
            ("state.cert-renew.io/rolled-out", "none"),
        ];
        let secret = format!("one-{number}");
        space.tls_secret(&secret, Some(&fresh), &annotations).await
    });
    let made = made.buffer_unordered(AT_ONCE);
    made.try_for_each(async |_| Ok(())).await?;
    let mut object = workload("Deployment", "one", 1, Reference::Volume, "one-0");
    let volume = |number: usize| json!({"name": format!("v{number}"), "secret": {"secretName": format!("one-{number}")}});
    let volumes: Vec<_> = (0..OF_ONE).map(volume).collect();
    object["spec"]["template"]["spec"]["volumes"] = json!(volumes);
    object["spec"]["minReadySeconds"] = json!(10);
    create(space, object).await?;
    eprintln!("hostile: {OF_ONE} Secrets of one Deployment");
    Ok(())
}

/// Certificates of a CA of one's own, which the issuer is asked about when to renew them.
async fn long_serials(space: &Space) -> Result<()> {
    let ca = TestCa::new("Hostile")?;
    for octets in SERIALS {
        let name = format!("serial-{octets}");
        let template = Template::new(&[&format!("{name}.h.example")]);
        let template = template.between(-DAY, 80 * DAY).serial(&vec![5; octets]);
        let odd = template.signed_by(&ca)?;
        space
            .tls_secret(&name, Some(&odd), &[("issuer", "pebble")])
            .await?;
    }
    Ok(())
}
