//! The Nix of this machine, as a builder would find it.

use super::DEADLINE;
use super::check::Check;
use crate::cli::builder_nix::NixArgs;
use crate::nix::daemon::NixPrograms;
use crate::report::Exit;

/// Lets Nix build something, as a builder does before it joins. `is_builder_wanted`: whether this machine may be meant to be
/// one; otherwise what makes that impossible is no problem.
pub(super) async fn checks(nix: &NixArgs, is_builder_wanted: bool) -> Vec<Check> {
    if let Err(error) = NixPrograms::find(std::env::var_os("PATH").as_ref()) {
        let error = error.to_string();
        let (found, next) = error.rsplit_once("; ").unwrap_or((&error, "install Nix"));
        return vec![Check::warning("nix", format!("{found}: builders and coordinators need it"), next)];
    }
    let inspected = tokio::time::timeout(DEADLINE, nix.inspect()).await;
    let checks = match inspected {
        Ok(Ok(inspection)) => {
            let facts = &inspection.facts;
            let mut checks: Vec<_> = inspection
                .problems
                .iter()
                .map(|problem| {
                    if problem.kind.is_fatal() {
                        Check::problem(
                            "nix",
                            Exit::Configuration,
                            format!("as a builder: {}", problem.what),
                            &problem.mend,
                        )
                    } else {
                        Check::warning("nix", format!("as a builder: {}", problem.what), &problem.mend)
                    }
                })
                .collect();
            if !inspection.problems.iter().any(|problem| problem.kind.is_fatal()) {
                checks.insert(0, Check::ok("nix", format!("{} builds {} here", facts.nix_version, facts.system)));
            }
            checks
        }
        Ok(Err(failure)) => vec![Check::failed("nix", &failure)],
        Err(_) => vec![Check::warning(
            "nix",
            format!("didn't build anything within {} s", DEADLINE.as_secs()),
            "`nixtail builder --print-facts` takes the time it needs",
        )],
    };
    if is_builder_wanted { checks } else { checks.into_iter().map(Check::softened).collect() }
}
