//! `mctl api-resources`: which kinds there are.

use crate::cli::ApiResourcesArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::session::{Session, Terminal};
use crate::table;

/// Runs the command.
pub async fn run(session: &Session, args: ApiResourcesArgs, terminal: &mut Terminal) -> Outcome {
    let wide = match args.output.as_deref() {
        None => false,
        Some("wide") => true,
        Some("name") => {
            for resource in session.catalogue().await?.resources {
                terminal.line(resource.full_name())?;
            }
            return Ok(Exit::Done);
        }
        Some(other) => return Err(Failure::new(format!("-o {other}: there are wide and name"))),
    };
    let catalogue = session.catalogue().await?;
    let resources = catalogue
        .resources
        .into_iter()
        .filter(|resource| args.api_group.as_ref().is_none_or(|group| *group == resource.group));
    let rows = resources.map(|resource| {
        let mut row = vec![
            resource.plural.clone(),
            resource.short_names.join(","),
            resource.api_version(),
            resource.namespaced.to_string(),
            resource.kind.clone(),
        ];
        if wide {
            row.extend([resource.verbs.join(","), resource.categories.join(",")]);
        }
        row
    });
    let mut headings = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
    if wide {
        headings.extend(["VERBS", "CATEGORIES"]);
    }
    let headings: Vec<String> = headings.into_iter().map(str::to_owned).collect();
    terminal.text(table::align(&headings, rows.collect(), !args.no_headers))?;
    Ok(Exit::Done)
}
