'use strict';
// What a workflow gave as inputs, read and checked. Texts stay texts: none of them ever meets a shell.

const { Failure } = require('./failure');

/** What is passed on to nixtail's command line as it is, where it is given: `--flag=value`, so that no value is a flag. */
const SYSTEMS = /^[A-Za-z0-9_.,\s-]*$/;
const NAMES = /^[A-Za-z0-9._,\s-]*$/;
const DURATION = /^(\d{1,9})(ms|s|m|h)?$/;
const IN_SECONDS = { ms: 0.001, s: 1, m: 60, h: 3600 };

/** Reads inputs as the runner hands them over: `INPUT_NAME`, in upper case, hyphens kept. */
class Reader {
  constructor(env) {
    this.env = env;
  }

  text(name, usual = '') {
    const given = this.env[`INPUT_${name.replace(/ /g, '_').toUpperCase()}`];
    return given === undefined || given.trim() === '' ? usual : given.trim();
  }

  /** One line that holds nothing but what `pattern` takes. */
  line(name, usual, pattern, wanted) {
    const text = this.text(name, usual);
    if (!pattern.test(text)) throw wrong(name, text, wanted);
    return text;
  }

  choice(name, usual, choices) {
    const text = this.text(name, usual);
    if (!choices.includes(text)) throw wrong(name, text, `one of ${choices.filter(Boolean).join(', ')}`);
    return text;
  }

  flag(name, usual) {
    return this.choice(name, String(usual), ['true', 'false']) === 'true';
  }

  count(name) {
    return this.line(name, '', /^([1-9]\d{0,5})?$/, 'a number above 0');
  }

  /** In seconds; `undefined` where it isn't given. */
  duration(name, usual) {
    const text = this.text(name, usual);
    if (text === undefined || text === '') return undefined;
    const [, number, unit = 's'] = DURATION.exec(text) ?? [];
    if (number === undefined) throw wrong(name, text, 'a time: 300, 90s, 5m or 2h');
    return Number(number) * IN_SECONDS[unit];
  }
}

const wrong = (name, text, wanted) =>
  new Failure(`input ${name} is ${JSON.stringify(text.slice(0, 100))}, which isn't ${wanted}`, `Give ${wanted}, or leave it out.`, { exitCode: 2 });

/** The inputs of a step. */
function readInputs(env = process.env) {
  const read = new Reader(env);
  const role = read.choice('role', 'builder', ['builder', 'coordinator']);
  const builderTimeout = read.duration('builder_timeout', '300');
  const [background, unclaimed] = [read.flag('background', false), read.choice('unclaimed', 'success', ['success', 'failure'])];
  if (background && unclaimed === 'failure') {
    throw new Failure('unclaimed: failure is given with background: true, where no step is left to fail',
      'Leave one of them out.', { exitCode: 2 });
  }
  return {
    role,
    credential: {
      authKey: read.text('tailscale_authkey'),
      clientId: read.text('oauth-client-id'),
      audience: read.text('audience'),
    },
    withoutSecrets: read.choice('without-secrets', 'local', ['local', 'fail']),
    allowPullRequestTarget: read.flag('allow-pull-request-target', false),
    loginServer: read.line('login-server', '', /^(https?:\/\/[^\s]+)?$/, 'a URL with http:// or https://'),
    hostname: read.line('tailscale_hostname', '', /^[\x20-\x7e]*$/, 'a host name'),
    tags: read.line('tailscale_tags', `tag:nix-ci-${role}`, /^[A-Za-z0-9:,\s-]+$/, 'a list of tags'),
    index: read.line('index', '', /^[A-Za-z0-9-]*$/, 'a number'),
    run: read.line('run', '', /^([A-Za-z0-9][A-Za-z0-9._-]{0,39})?$/, 'a name of at most 40 letters, digits, dots, hyphens and underscores'),
    builders: read.line('builders', '', NAMES, 'a number, or host names separated by blanks'),
    minBuilders: read.count('min-builders'),
    systems: read.line('systems', '', SYSTEMS, 'a list of systems, such as x86_64-linux'),
    builderTimeout,
    // As long as a builder waits, and a minute for its job to begin.
    wait: read.duration('wait') ?? builderTimeout + 60,
    drain: read.duration('drain'),
    maxJobs: read.count('max-jobs'),
    mode: read.line('mode', '', /^[a-z-]*$/, 'a mode of `nixtail coordinator`'),
    transport: read.choice('transport', '', ['', 'auto', 'direct', 'ssh']),
    login: read.line('login', 'nix', /^[A-Za-z_][A-Za-z0-9._-]{0,31}$/, 'a user name'),
    extraNixConfig: read.text('extra_nix_config'),
    background,
    unclaimed,
    logMode: read.choice('log-mode', 'grouped', ['grouped', 'normal', 'quiet']),
    sourceBinary: read.text('source-binary'),
  };
}

module.exports = { readInputs };
