'use strict';
// What a node is called, and which run it is of.

const { randomBytes } = require('node:crypto');

/** Bytes of a DNS label. */
const MAX_LABEL = 63;

/** The run of this job: all jobs of one attempt have the same, and a second attempt has another. */
const runOf = (inputs, env) => inputs.run || `${env.GITHUB_RUN_ID || 'local'}-${env.GITHUB_RUN_ATTEMPT || '1'}`;

/** A text as a part of a DNS label. */
const label = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-+|-+$/g, '');

/**
 * The name to ask control for: `nix-ROLE-RUN-JOB-INDEX`, the job's part cut so that it fits. A name that was given stays as it
 * is: nixtail makes a label of it as Tailscale does.
 */
function hostnameOf(inputs, env) {
  if (inputs.hostname) return inputs.hostname;
  const head = label(`nix-${inputs.role}-${runOf(inputs, env)}`);
  // Where there is no index, as under act, two jobs of a matrix must differ all the same.
  const tail = label(inputs.index) || randomBytes(3).toString('hex');
  const job = label(env.GITHUB_JOB ?? '').slice(0, Math.max(MAX_LABEL - head.length - tail.length - 2, 0));
  return [head, label(job), tail].filter(Boolean).join('-').slice(0, MAX_LABEL);
}

module.exports = { hostnameOf, runOf };
