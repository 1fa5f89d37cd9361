//! The command: one binary for users, operators, agents and servers.
//!
//! What it promises: every mistake in a manifest is shown where it is, before anything is sent; exit codes are those of
//! [`failure::Exit`]; results go to standard output and everything else to standard error, so that pipes get only results. What must
//! never happen here: a second opinion about the cluster. The command shows what the API server says and decides nothing itself.
//! Tested by a corpus of bad manifests, by snapshots of what is printed, and against the real API server.

pub mod age;
pub mod apply_args;
pub mod cli;
pub mod commands;
pub mod dev;
pub mod discovery;
pub mod failure;
pub mod jsonpath;
pub mod kubeconfig;
pub mod manifest;
pub mod observe;
pub mod output;
pub mod owners;
pub mod rest;
pub mod session;
pub mod store_args;
pub mod stream;
pub mod style;
pub mod table;
pub mod top_args;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command, DryRun, Global};
use failure::{Exit, Failure, Outcome};
use muster_api::env::{Env as _, SystemEnv};
use session::{Session, Terminal};
use style::Paint;

/// Everything that `main` does.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // Before any thread: the containers of agents in this process are held by this executable, run again.
    if args.nth(1).as_deref() == Some("shim".as_ref()) {
        return muster_runtime::process::shim_main(args);
    }
    let cli = Cli::parse();
    log(&cli.global);
    let mut terminal = Terminal::real();
    let outcome = match cli.command {
        Command::Completion(args) => Ok(completion(args.shell)),
        Command::Config(command) => commands::config::run(&cli.global, command, &mut terminal),
        Command::Image(command) => {
            runtime().and_then(|runtime| runtime.block_on(commands::image::run(command, &mut terminal)))
        }
        Command::Dev(args) => cluster().and_then(|runtime| runtime.block_on(dev::dev(*args, &mut terminal))),
        Command::Server(args) => cluster().and_then(|runtime| runtime.block_on(dev::server(*args, &mut terminal))),
        Command::Agent(args) if args.command.is_none() => {
            cluster().and_then(|runtime| runtime.block_on(dev::agent(*args, &cli.global.servers, &mut terminal)))
        }
        Command::Doctor(args) => {
            runtime().and_then(|runtime| runtime.block_on(commands::doctor::run(args, &mut terminal)))
        }
        Command::Backup(command) => {
            cluster().and_then(|runtime| runtime.block_on(commands::backup::run(command, &mut terminal)))
        }
        Command::Store(command) => {
            cluster().and_then(|runtime| runtime.block_on(commands::store::run(command, &mut terminal)))
        }
        command => runtime().and_then(|runtime| runtime.block_on(dispatch(&cli.global, command, &mut terminal))),
    };
    finish(outcome, &mut terminal)
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Two threads are enough for a cluster on one machine: the work is waiting.
fn cluster() -> Outcome<tokio::runtime::Runtime> {
    muster_apiserver::allocator::keep_small();
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

async fn dispatch(global: &Global, command: Command, terminal: &mut Terminal) -> Outcome {
    match command {
        Command::Version(args) => return commands::version::run(global, args, terminal).await,
        Command::Schema(args) => return commands::schema::run(global, args, terminal).await,
        Command::Apply(args) if args.dry_run == DryRun::Client => {
            return commands::apply::run(None, args, terminal).await;
        }
        _ => {}
    }
    // Mistakes in manifests are told without a cluster, too.
    let session = match Session::open(global).await {
        Ok(session) => session,
        Err(failure) => {
            if let Command::Apply(args) = &command {
                session::read_files(&args.files, terminal)?;
            }
            return Err(failure);
        }
    };
    let session = &session;
    match command {
        Command::Get(args) => commands::get::run(session, args, terminal).await,
        Command::Describe(args) => commands::describe::run(session, args, terminal).await,
        Command::Apply(args) => commands::apply::run(Some(session), args, terminal).await,
        Command::Diff(args) => commands::diff::run(session, args, terminal).await,
        Command::Delete(args) => commands::delete::run(session, args, terminal).await,
        Command::Logs(args) => commands::logs::run(session, args, terminal).await,
        Command::Exec(args) => commands::exec::run(session, args, terminal).await,
        Command::Cp(args) => commands::cp::run(session, args, terminal).await,
        Command::PortForward(args) => commands::port_forward::run(session, args, terminal).await,
        Command::Run(args) => commands::run::run(session, args, terminal).await,
        Command::Wait(args) => commands::wait::run(session, args, terminal).await,
        Command::Why(args) => commands::why::run(session, args, terminal).await,
        Command::Cordon(args) => commands::cordon::run(session, &args, true, SystemEnv.now(), terminal).await,
        Command::Uncordon(args) => commands::cordon::run(session, &args, false, SystemEnv.now(), terminal).await,
        Command::Gone(args) => commands::gone::run(session, args, SystemEnv.now(), terminal).await,
        Command::Top(command) => commands::top::run(session, command, terminal).await,
        Command::Events(args) => commands::events::run(session, args, terminal).await,
        Command::Agent(args) => match args.command {
            Some(command) => commands::agent::run(session, command, SystemEnv.now(), terminal).await,
            None => Err(Failure::new("this build has no cluster in it")),
        },
        Command::Auth(command) => commands::auth::run(session, command, terminal).await,
        Command::Token(command) => commands::token::run(session, command, terminal).await,
        Command::ApiResources(args) => commands::api_resources::run(session, args, terminal).await,
        Command::Dev(_) | Command::Server(_) => Err(Failure::new("this build has no cluster in it")),
        Command::Backup(_)
        | Command::Store(_)
        | Command::Completion(_)
        | Command::Config(_)
        | Command::Doctor(_)
        | Command::Image(_)
        | Command::Schema(_)
        | Command::Version(_) => {
            unreachable!("they are dispatched before a cluster is looked for")
        }
    }
}

fn completion(shell: clap_complete::Shell) -> Exit {
    clap_complete::generate(shell, &mut Cli::command(), "mctl", &mut std::io::stdout());
    Exit::Done
}

fn log(global: &Global) {
    // What goes wrong in a call is said by whoever made it.
    const FILTER: &str = "warn,kube_client=off";
    let filter = global.log.as_deref().unwrap_or(FILTER);
    let filter =
        tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(FILTER));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(style::Style::detect(&std::io::stderr()) != style::Style::plain())
        .compact();
    // Only the first call in a process sets it; a test may have been first.
    let _ = lines.try_init();
}

/// Tells how it ended.
fn finish(outcome: Outcome, terminal: &mut Terminal) -> ExitCode {
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failure::BrokenPipe) => Exit::Done.into(),
        Err(Failure::Report(report)) => {
            terminal.note(report.render(terminal.err_style));
            Exit::Error.into()
        }
        Err(Failure::Message { exit, text }) => {
            let head = terminal.err_style.paint(Paint::Error, "error:");
            terminal.note(format!("{head} {text}"));
            exit.into()
        }
    }
}
