'use strict';
// What comes after the job's last step, whatever happened: the builders end, the node leaves, what came of the run is told,
// and nothing is left. Never fails the job.

const fs = require('node:fs');
const path = require('node:path');
const { ask, lastWords, read } = require('./agent');
const { agentEnvironment } = require('./environment');
const { Commands } = require('./commands');
const { Folder } = require('./folder');
const { readInputs } = require('./inputs');
const { LogView } = require('./log_view');
const { run } = require('./script');
const { RunnerFiles } = require('./runner_files');

/** `nixtail stop-builders` gives up after 60 s, `nixtail down` after 20 and the drain. */
const STOP_MS = 75_000;
const DOWN_MS = 45_000;
/** A job that was cancelled has five minutes in all. */
const MAX_DRAIN_S = 150;
/** What a builder says last where its coordinator let it go, or none came. */
const ENDED_WELL = /^the builder ends: /;

async function post({ env = process.env, commands = new Commands() } = {}) {
  const { STATE_folder: root, STATE_role: role, STATE_hostname: hostname = 'this node' } = env;
  // It never came so far.
  if (!root || !path.basename(root).startsWith('nixtail-') || !fs.existsSync(root)) return;
  const folder = new Folder(root);
  // Nothing was started, and the step has said why not.
  if (!env.STATE_started) return folder.remove();
  const binary = path.join(folder.bin, 'nixtail');
  const call = (words, timeout) => ask(binary, words, folder, { env: agentEnvironment(env), timeout });
  // From where the step has left off.
  const view = new LogView(folder.log, env['INPUT_LOG-MODE'] || 'grouped', `nixtail ${role}, at its end`, commands, Number(env.STATE_shown) || 0);
  const told = [];
  if (fs.existsSync(folder.socket)) {
    if (role === 'coordinator') {
      const stopped = await call(['stop-builders'], STOP_MS);
      if (stopped.code !== 0) told.push(`Not every builder could be told to end: ${words(stopped)} Each ends by itself when this coordinator has left.`);
    }
    const drain = role === 'builder' ? drainOf(env) : 0;
    const down = await call(['down', `--wait=${drain}s`], DOWN_MS + drain * 1000);
    // Where a coordinator was killed, `down` has put root's files back, and says so.
    if (down.code !== 0 || /was killed/.test(down.stderr)) {
      told.push(`${hostname} couldn't leave the tailnet: ${words(down)} It is ephemeral: control removes it, Tailscale's within an hour or so.`);
      endLeftover(folder, told);
    }
  } else if (env.STATE_ended === undefined) {
    // It takes its socket away when it leaves in good order.
    const last = lastWords(read(folder.log));
    if (!ENDED_WELL.test(last?.message)) commands.notice('nixtail: ended early', `The ${role} had left the tailnet before its job ended${last ? `: ${last.message}` : ''}.`);
  } else if (env.STATE_ended === 'killed') {
    told.push(`The agent was killed. ${hostname} may still be in the tailnet; it is ephemeral: control removes it, Tailscale's within an hour or so.`);
  }
  view.end();
  summarise(folder, role, new RunnerFiles(env));
  for (const text of told) commands.warning('nixtail: left behind', text);
  folder.remove();
  if (told.length === 0) commands.say('nixtail: nothing is left: no node, no process, no file');
}

/** How long running builds may go on. */
function drainOf(env) {
  try {
    return Math.min(Math.ceil(readInputs(env).drain ?? 0), MAX_DRAIN_S);
  } catch {
    // The step has refused it.
    return 0;
  }
}

/** What a command said, as one sentence. */
function words({ code, stderr, error }) {
  const said = lastWords(stderr ?? '')?.message ?? (code === null ? 'it took too long' : error?.message ?? `exit code ${code}`);
  return `${said.trim().replace(/\.?$/, '.')}`;
}

/** The agent's process, where nothing else has ended it. It is ours by its socket, which stands on its command line. */
function endLeftover(folder, told) {
  if (!fs.existsSync('/proc/self')) return;
  for (const entry of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const words = read(`/proc/${entry}/cmdline`).split('\0');
    if (!words.includes(`--socket=${folder.socket}`)) continue;
    try {
      process.kill(Number(entry), 'SIGKILL');
      told.push('Its process didn\'t end and was killed.');
    } catch {
      // It has ended just now.
    }
  }
}

/** What came of a coordinator's run, on the job's page. */
function summarise(folder, role, files) {
  const markdown = role === 'coordinator' ? read(path.join(folder.summary, 'summary.md')) : '';
  if (markdown.trim() !== '') files.summary(markdown);
}

if (require.main === module) {
  const commands = new Commands();
  run(() => post({ commands })
    .catch((error) => commands.warning('nixtail: left behind', `the end went wrong: ${error.stack ?? error}`))
    .then(() => 0));
}

module.exports = { post };
