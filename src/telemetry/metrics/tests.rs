use cert_renew_core::testing::entries;

use super::*;

#[test]
fn every_series_is_rendered_as_the_golden_file_has_it() {
    let rendered = eventful().render(
        entries::NOW,
        &entries::index(),
        &|observed| u32::from(observed.account == entries::FAILING.into()) * 2,
        true,
    );
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let rendered = rendered.replace(&version, "version=\"VERSION\"");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/metrics/golden.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &rendered).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(rendered, golden, "UPDATE_GOLDEN=1 writes {path} again");
}

#[test]
fn the_documentation_lists_what_is_rendered() {
    let mut rendered = eventful().render(
        entries::NOW,
        &entries::index(),
        &|observed| u32::from(observed.account == entries::FAILING.into()) * 2,
        true,
    );
    process::write(&mut rendered, entries::NOW);
    let mut families: Vec<(String, String, String)> = rendered
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| (name.into(), kind.into(), labels_of(&rendered, name)))
        .collect();
    families.sort();
    let page = include_str!("../../../docs/metrics.md");
    let cell = |text: &str| text.trim().trim_matches('`').to_owned();
    let mut documented: Vec<(String, String, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| line.split('|').map(cell).collect::<Vec<_>>())
        .map(|cells| (cells[0].clone(), cells[1].clone(), cells[2].clone()))
        .collect();
    documented.sort();
    assert_eq!(documented, families);
}

/// The labels of a family's first sample, without `le`.
fn labels_of(rendered: &str, name: &str) -> String {
    let sample = |line: &&str| line.starts_with(name) && line.contains('{');
    let belongs = |line: &&str| {
        let rest = &line[name.len()..];
        rest.starts_with('{') || rest.starts_with("_bucket{")
    };
    let line = rendered.lines().filter(sample).find(belongs);
    let inside = line.and_then(|line| Some(line.split_once('{')?.1.rsplit_once('}')?.0));
    inside
        .unwrap_or_default()
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(label, _)| label)
        .filter(|label| *label != "le")
        .collect::<Vec<_>>()
        .join(", ")
}

/// Metrics with one of every event.
fn eventful() -> Metrics {
    let metrics = Metrics::new().unwrap();
    let seconds = Duration::from_secs;
    metrics.renewal("letsencrypt", RenewalResult::Renewed, "");
    metrics.renewal("letsencrypt", RenewalResult::Failed, "RateLimited");
    metrics.renewal_took("letsencrypt", seconds(7));
    metrics.renewal_step_took("letsencrypt", RenewalStep::Prove, seconds(3));
    metrics.rollout(Kind::Deployment, RolloutResult::Rolled);
    metrics.rollout(Kind::DaemonSet, RolloutResult::Unchanged);
    metrics.rollout(Kind::DaemonSet, RolloutResult::Reloaded);
    metrics.verified(3, 1, 2);
    metrics.rollout(Kind::StatefulSet, RolloutResult::Failed);
    metrics.rollout_took(Kind::Deployment, seconds(42));
    metrics.acme_request("ca.example", "newOrder", Some(201), seconds(1));
    metrics.acme_request("ca.example", "newOrder", None, seconds(30));
    metrics.api_request("patch", "secrets", Some(200));
    metrics.api_request("patch", "secrets", None);
    metrics.watch_up(true);
    metrics.watch_restarted();
    metrics.passed_over(&[Some("shop".into())].into());
    metrics.unmanaged("shop", "web", "lost", true);
    metrics.task_panicked(Part::Events);
    metrics.token_reviewed(Reviewed::TooMany);
    metrics.loop_lag(Duration::from_millis(250));
    metrics.config_rejected(true);
    metrics.config_taken_over(entries::NOW);
    metrics.paused(true);
    metrics.leader(true);
    metrics.term_began();
    metrics.limited_until("letsencrypt", entries::NOW);
    metrics.renewal_info("letsencrypt", Some(entries::NOW));
    metrics.renewal_info("letsencrypt", None);
    metrics.renewal_window_moved("letsencrypt");
    metrics
}
