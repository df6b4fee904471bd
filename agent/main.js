'use strict';
// The step itself: finds the program, starts it with what it may know, and waits until it is ready or, for a builder that
// stays in its step, until it has ended.

const fs = require('node:fs');
const path = require('node:path');
const { Agent, ask, lastWords, read } = require('./agent');
const { agentArguments } = require('./arguments');
const { agentEnvironment } = require('./environment');
const { Commands, harmless } = require('./commands');
const { Failure } = require('./failure');
const { findBinary } = require('./binary');
const { findCredential, maskInputs } = require('./credential');
const { Folder } = require('./folder');
const { LogView } = require('./log_view');
const { readInputs } = require('./inputs');
const { readTrigger } = require('./trigger');
const { run } = require('./script');
const { RunnerFiles } = require('./runner_files');
const { variablesOf, withSettings } = require('./nix_environment');
const { writeIdlePrograms, writePrograms } = require('./programs');

/** How long joining may take beside a coordinator's wait for its builders. */
const JOINING_S = 120;
/** After this long without builders, a second attempt is told what may be wrong. */
const DOUBT_S = 45;
/** What the exit codes of nixtail mean for a workflow. */
const TITLES = {
  69: 'nixtail: not reachable', 75: 'nixtail: try again', 77: 'nixtail: refused', 78: 'nixtail: configuration', 124: 'nixtail: it took too long',
};
const RERUN = 'This is attempt %s. Where only failed jobs are run again, builders that ended well aren\'t: choose "Re-run all jobs".';

async function main({ env = process.env, commands = new Commands() } = {}) {
  const files = new RunnerFiles(env);
  const inputs = readInputs(env);
  maskInputs(inputs.credential, commands);
  const trigger = readTrigger(env);
  refuseUnsafe(trigger, inputs);
  const credential = isWithoutToken(trigger, inputs, env) ? null : await findCredential(inputs.credential, { commands, env });
  if (!credential) return withoutCredential(trigger, inputs, { commands, files, env });

  const folder = Folder.make(env);
  // Before anything is started: whatever happens, post finds it.
  files.state('folder', folder.root);
  files.state('role', inputs.role);
  const binary = await findBinary(inputs, folder.bin, { commands, env });
  if (inputs.extraNixConfig && inputs.role === 'builder') fs.writeFileSync(folder.nixConfig, `${inputs.extraNixConfig}\n`, { mode: 0o600 });
  // The runner's process for this job. In a container it can't be seen from here; there the container ends with the job.
  const bond = process.ppid > 1 ? [`--bound-to=${process.ppid}`] : [];
  const agent = Agent.start(binary, [...agentArguments(inputs, folder, { credential, env }), ...bond], {
    folder,
    env: agentEnvironment(env, credential.env),
    stdin: credential.stdin,
  });
  files.state('started', 'true');
  // Without a wish of the user's, builds get 30 s after SIGTERM.
  agent.patience += 1000 * (inputs.drain ?? 30);
  const interrupted = passSignalsOn(agent);
  const view = new LogView(folder.log, inputs.logMode, `nixtail ${inputs.role}`, commands);
  let line;
  try {
    line = await ready(agent, view, inputs, env);
    // It has read it.
    fs.rmSync(folder.nixConfig, { force: true });
    if (line !== null) {
      await publish(binary, { inputs, folder, files, env }).catch(async (error) => {
        // Told to end, or ended, it answers nothing any more: that is the reason.
        if (!agent.told && !agent.end) throw error;
        await agent.wait(() => view.look());
      });
      if (inputs.role === 'builder' && !inputs.background) await agent.wait(() => view.look());
    }
  } finally {
    files.state('shown', view.end());
  }
  if (agent.end) return ended(agent, { inputs, folder, files, env, interrupted: interrupted() });
  commands.say(line);
  agent.leave();
}

/** A workflow of `pull_request_target` runs strangers' changes with our secrets, unless whoever wrote it knows better. */
function refuseUnsafe(trigger, inputs) {
  if (trigger.name !== 'pull_request_target' || inputs.allowPullRequestTarget) return;
  throw new Failure('this workflow was started by pull_request_target, which gives its secrets to code from any fork',
    'Use pull_request. If nothing of the pull request is built here: allow-pull-request-target: true.', { title: 'nixtail: refused', exitCode: 77 });
}

/** Whether a workload identity is named where GitHub gives no tokens: its names are no secrets, so a fork's job may have them. */
const isWithoutToken = (trigger, { credential }, env) =>
  trigger.withoutSecrets && credential.clientId !== '' && !credential.authKey && !env.ACTIONS_ID_TOKEN_REQUEST_TOKEN;

/** Nothing to log in with: where GitHub gives none, the job goes on alone. */
function withoutCredential(trigger, inputs, { commands, files, env }) {
  const { withoutSecrets: why } = trigger;
  if (!why || inputs.withoutSecrets === 'fail') {
    const reason = why ? `: GitHub gives this job no secrets, since ${why}` : '';
    throw new Failure(`there is nothing to log in with${reason}`,
      'Give tailscale_authkey (a secret of this repository or its environment; is its name right?), or oauth-client-id and audience.', { title: 'nixtail: configuration', exitCode: 78 });
  }
  commands.notice('nixtail: local build', `GitHub gives this job no secrets, since ${why}. ${inputs.role === 'builder'
    ? 'So this builder has nothing to do.' : 'So there are no builders, and Nix builds on this machine alone.'}`);
  files.output('builder-count', '0');
  files.output('builders', '');
  files.output('systems', '');
  files.output('max-jobs', 'auto');
  // Later steps call what is usually there.
  const folder = Folder.make(env);
  files.state('folder', folder.root);
  writeIdlePrograms(folder);
  files.path(folder.bin);
}

/** Waits for the ready line, and tells in time what may keep it away. */
async function ready(agent, view, inputs, env) {
  const begun = Date.now();
  const deadline = JOINING_S + (inputs.role === 'coordinator' ? inputs.wait : 0);
  let isDoubted = !(inputs.role === 'coordinator' && Number(env.GITHUB_RUN_ATTEMPT) > 1);
  return agent.ready(() => {
    view.look();
    const seconds = (Date.now() - begun) / 1000;
    if (!isDoubted && seconds > DOUBT_S) {
      isDoubted = true;
      view.aside((commands) => commands.warning('nixtail: still waiting for builders', RERUN.replace('%s', env.GITHUB_RUN_ATTEMPT)));
    }
    // It has deadlines of its own; this one is for an agent that hangs.
    if (seconds > deadline) agent.tell('SIGTERM');
  });
}

/** Outputs, variables and programs for the steps that come. */
async function publish(binary, { inputs, folder, files, env }) {
  const asked = await ask(binary, ['status', '--json'], folder, { env: agentEnvironment(env), timeout: 30_000 });
  if (asked.code !== 0) throw new Failure(`the agent doesn't answer: ${lastWords(asked.stderr)?.message ?? asked.error.message}`, 'Its log is above.');
  const status = JSON.parse(asked.stdout);
  const builders = (status.builders ?? []).filter((builder) => builder.ready);
  // Names come from the tailnet: one line each, whatever is in them.
  const hostname = harmless(status.self.dns_name);
  files.output('hostname', hostname);
  files.output('ip', status.self.addresses[0] ?? '');
  files.output('socket', folder.socket);
  files.output('log-file', folder.log);
  files.path(folder.bin);
  files.variable('NIXTAIL_SOCKET', folder.socket);
  files.state('hostname', hostname);
  if (inputs.role !== 'coordinator') return;
  const systems = new Set(builders.map((builder) => harmless(builder.system ?? '')).filter(Boolean));
  files.output('builders', builders.map((builder) => harmless(builder.name)).join(' '));
  files.output('builder-count', builders.length);
  files.output('systems', [...systems].sort().join(' '));
  files.output('machines-file', path.join(folder.run, 'machines'));
  files.output('summary', folder.summary);
  files.output('max-jobs', '0');
  writePrograms(folder, inputs.role);
  const variables = await variablesOf(folder, env);
  // Behind what the user wrote; of two like settings Nix takes the last.
  if (inputs.extraNixConfig && env.NIXTAIL_NIX_WAS_THERE !== 'false') {
    variables.NIX_CONFIG = withSettings(variables.NIX_CONFIG ?? env.NIX_CONFIG, inputs.extraNixConfig);
  }
  for (const [name, value] of Object.entries(variables)) files.variable(name, value);
}

/** How the step ends with its agent. */
function ended(agent, { inputs, folder, files, env, interrupted }) {
  const { code, signal, error } = agent.end;
  files.state('ended', code ?? (error ? 'never started' : 'killed'));
  const words = lastWords(read(folder.log));
  if (interrupted) throw new Failure(`${interrupted} ended this ${inputs.role}`, '', { title: 'nixtail: cancelled', exitCode: interrupted === 'SIGINT' ? 130 : 143 });
  if (code === 0 && inputs.role === 'builder') return;
  if (error) throw new Failure(`nixtail can't be started: ${error.message}`, 'Is it for this machine\'s system?', { exitCode: 78 });
  const hint = code === 75 && inputs.role === 'coordinator' && Number(env.GITHUB_RUN_ATTEMPT) > 1 ? RERUN.replace('%s', env.GITHUB_RUN_ATTEMPT) : '';
  const how = signal ? `it was killed by ${signal}` : `exit code ${code}`;
  throw new Failure(`${words?.message ?? `the ${inputs.role} ended before it was ready`} (${how})`,
    [words?.next, hint].filter(Boolean).join('\n') || 'Its log is above.', { title: TITLES[code] ?? 'nixtail', exitCode: code || 1 });
}

/** Passes the first signal on. The runner sends SIGINT, and 7.5 s later SIGTERM; the agent leaves the tailnet by itself. */
function passSignalsOn(agent) {
  let came = '';
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      came ||= signal;
      agent.tell(signal);
    });
  }
  return () => came;
}

if (require.main === module) {
  const commands = new Commands();
  run(() => main({ commands }).then(() => 0, (error) => {
    if (error instanceof Failure) commands.error(error.title, error.words);
    else commands.error('nixtail: a mistake in the launcher', error.stack ?? error);
    return error.exitCode ?? 1;
  }));
}

module.exports = { main };
