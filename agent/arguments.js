'use strict';
// From inputs to nixtail's command line. Each value is glued to its flag, so that none is taken for a flag itself; nothing
// here is secret.

const { hostnameOf, runOf } = require('./names');

/** A flag with a value, where there is one. */
const flag = (name, value) => (value === undefined || value === '' ? [] : [`--${name}=${value}`]);
const seconds = (time) => (time === undefined ? undefined : `${Math.round(time * 1000)}ms`);

/** The arguments of `nixtail builder` or `nixtail coordinator`. */
function agentArguments(inputs, folder, { credential, env = process.env }) {
  const joining = [
    inputs.role,
    ...(inputs.logMode === 'quiet' ? [] : [env.RUNNER_DEBUG === '1' ? '-vv' : '-v']),
    ...flag('login-server', inputs.loginServer),
    ...flag('hostname', hostnameOf(inputs, env)),
    ...flag('tags', inputs.tags.replace(/\s+/g, ',')),
    ...flag('socket', folder.socket),
    ...flag('login', inputs.login),
    ...flag('max-jobs', inputs.maxJobs),
    ...credential.args,
  ];
  return [...joining, ...(inputs.role === 'builder' ? builder(inputs, folder, env) : coordinator(inputs, folder, env))];
}

function builder(inputs, folder, env) {
  return [
    ...flag('run', runOf(inputs, env)),
    ...flag('idle-timeout', seconds(inputs.builderTimeout)),
    ...flag('unclaimed', inputs.unclaimed === 'failure' ? 'failure' : ''),
    ...flag('drain', seconds(inputs.drain)),
    // It may hold access tokens: a file, which goes once it is read.
    ...(inputs.extraNixConfig ? flag('extra-nix-config', `file:${folder.nixConfig}`) : []),
  ];
}

function coordinator(inputs, folder, env) {
  const names = inputs.builders.split(/[\s,]+/).filter(Boolean);
  const isNumber = names.length === 1 && /^\d+$/.test(names[0]);
  return [
    ...flag('builders', isNumber ? names[0] : names.join(' ')),
    // Builders that are named may be of any run.
    ...(names.length === 0 || isNumber ? flag('run', runOf(inputs, env)) : []),
    ...flag('min-builders', inputs.minBuilders),
    ...flag('systems', inputs.systems),
    ...flag('wait', seconds(inputs.wait)),
    ...flag('mode', inputs.mode),
    // What Nix itself goes by in this job.
    ...flag('store', ['auto', 'daemon'].includes(env.NIX_REMOTE) ? '' : env.NIX_REMOTE),
    ...flag('transport', inputs.transport),
    ...flag('summary', folder.summary),
  ];
}

module.exports = { agentArguments };
