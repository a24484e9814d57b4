//! stub
#[derive(Debug, clap::Parser)]
pub(super) struct Args {}
pub(super) fn run(_: Args) -> super::CommandResult {
    Ok(std::process::ExitCode::SUCCESS)
}
