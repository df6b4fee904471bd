//! Which builders a coordinator is to find, as the command line says it.

use std::time::Duration;

use nixtail_proto::run::{BUILDER_TAG, RunNameError, Wanted, Who, check_run_name};

use super::duration::parse_duration;
use super::join::tags;
use crate::report::{Exit, Failure};

/// The flags that say which builders are wanted.
#[derive(clap::Args)]
pub(super) struct WantedArgs {
    /// The builders: how many, or their names, separated by blanks or commas.
    #[arg(long, value_name = "NUMBER|NAMES", required_unless_present = "run")]
    builders: Option<String>,
    /// Only builders of this run: those that were started with the same --run, or are named PREFIX-RUN-…
    #[arg(long, value_name = "NAME", value_parser = run_name)]
    pub(super) run: Option<String>,
    /// The tag that builders have, where they aren't given by name.
    #[arg(long, value_name = "TAG", default_value = BUILDER_TAG)]
    tag: String,
    /// So many builders are enough to begin; the others join when they come [default: all].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    min_builders: Option<u32>,
    /// There must be a builder for each of these systems, too, such as x86_64-linux,aarch64-linux.
    #[arg(long, value_name = "SYSTEMS")]
    systems: Option<String>,
    /// How long to wait until enough of them are ready.
    #[arg(long, value_name = "TIME", default_value = "360s", value_parser = parse_duration)]
    pub(super) wait: Duration,
}

/// Reads the name of a run.
pub(super) fn run_name(name: &str) -> Result<String, RunNameError> {
    check_run_name(name).map(|()| name.to_owned())
}

/// The words of a list that is separated by blanks or commas.
pub(super) fn words(list: &str) -> impl Iterator<Item = String> {
    list.split([',', ' ', '\n']).filter(|word| !word.is_empty()).map(str::to_owned)
}

impl WantedArgs {
    /// What the coordinator is to look for.
    pub(super) fn wanted(&self) -> Result<Wanted, Failure> {
        let tag = match tags(&self.tag)?.as_slice() {
            [tag] => tag.clone(),
            _ => return Err(Failure::new(Exit::Usage, "--tag takes one tag")),
        };
        let tagged = |count| Who::Tagged { tag, run: self.run.clone(), count };
        let who = match self.builders.as_deref().map(str::trim) {
            None => tagged(None),
            Some(number) if !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()) => {
                let count: usize = number
                    .parse()
                    .map_err(|_| Failure::new(Exit::Usage, format!("--builders {number}: no tailnet has so many")))?;
                if count == 0 {
                    return Err(Failure::new(
                        Exit::Usage,
                        "--builders 0: a coordinator without builders has nothing to do",
                    ));
                }
                tagged(Some(count))
            }
            Some(names) => Who::Named(words(names).collect()),
        };
        let at_least = self.min_builders.and_then(|number| usize::try_from(number).ok());
        match &who {
            Who::Named(names) if names.is_empty() => return Err(Failure::new(Exit::Usage, "--builders names none")),
            Who::Named(names) if at_least.is_some_and(|least| least > names.len()) => {
                return Err(Failure::new(Exit::Usage, "--min-builders is more than --builders names"));
            }
            _ => {}
        }
        let systems = self.systems.as_deref().map(words).into_iter().flatten().collect();
        Ok(Wanted { who, at_least, systems, wait: self.wait })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn read(flags: &[&str]) -> Result<Wanted, String> {
        let command = WantedArgs::augment_args(clap::Command::new("x"));
        let matches = command.try_get_matches_from([&["x"], flags].concat()).map_err(|error| error.to_string())?;
        let args = WantedArgs::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        args.wanted().map_err(|failure| failure.message)
    }

    #[test]
    fn builders_are_names_or_a_number_or_a_run() {
        let tagged =
            |run: Option<&str>, count| Who::Tagged { tag: BUILDER_TAG.to_owned(), run: run.map(str::to_owned), count };
        let who = |flags: &[&str]| read(flags).map(|wanted| wanted.who);
        assert_eq!(who(&["--builders", "b1, b2"]), Ok(Who::Named(vec!["b1".into(), "b2".into()])));
        assert_eq!(who(&["--builders", "4"]), Ok(tagged(None, Some(4))));
        assert_eq!(who(&["--builders", "4", "--run", "77-1"]), Ok(tagged(Some("77-1"), Some(4))));
        assert_eq!(who(&["--run", "77-1"]), Ok(tagged(Some("77-1"), None)));
        let other = who(&["--run", "77-1", "--tag", "mine"]);
        assert_eq!(other, Ok(Who::Tagged { tag: "tag:mine".into(), run: Some("77-1".into()), count: None }));
        for bad in [
            &[][..],
            &["--builders", ""],
            &["--builders", "0"],
            &["--run", "a b"],
            &["--builders", "a", "--min-builders", "2"],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn systems_and_the_least_number_are_kept() {
        let wanted = read(&["--builders", "9", "--min-builders", "2", "--systems", "a,b a"]).unwrap();
        assert_eq!(wanted.systems.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((wanted.at_least, wanted.wait), (Some(2), Duration::from_secs(360)));
    }
}
