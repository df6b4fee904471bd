'use strict';
// What the node logs in with, and how it is kept secret on the way to nixtail: masked before anything else happens, and
// handed over on stdin, never on the command line or in the environment.

const { Failure } = require('./failure');

/** How long GitHub may take to make a token. */
const TOKEN_DEADLINE_MS = 30_000;
const ATTEMPTS = 3;
/** A token is some KiB. */
const MAX_ANSWER = 64 * 1024;
/** What an OAuth client's secret begins with. */
const OAUTH_PREFIX = 'tskey-client-';

/** Masks what is secret in the inputs: the whole, and each part that tools show alone. */
function maskInputs({ authKey, clientId: _public }, commands) {
  if (!authKey) return;
  commands.mask(authKey);
  for (const part of authKey.split(/[\r\n]+/)) commands.mask(part.trim().split('?')[0]);
}

/**
 * What to log in with, ready to be handed over.
 * @returns {Promise<{args: string[], env: Record<string, string>, stdin: string} | null>} null: there is none
 */
async function findCredential({ authKey, clientId, audience }, { commands, env = process.env, fetch = globalThis.fetch }) {
  if (authKey && clientId) {
    throw new Failure('both tailscale_authkey and oauth-client-id are given', 'Give one of them: which one is meant can\'t be guessed.', { exitCode: 78 });
  }
  if (authKey) return { args: ['--auth-key=file:-'], env: {}, stdin: preauthorized(authKey) };
  if (!clientId && !audience) return null;
  if (!clientId || !audience) {
    throw new Failure(`${clientId ? 'oauth-client-id' : 'audience'} is given without ${clientId ? 'audience' : 'oauth-client-id'}`,
      'A workload identity takes both, as Trust credentials in the admin console show them.', { exitCode: 78 });
  }
  const token = await askForToken(audience, { env, fetch, commands });
  return { args: [], env: { TS_CLIENT_ID: preauthorized(clientId, true), TS_ID_TOKEN: 'file:-' }, stdin: token };
}

/** Nobody sits there to approve a CI job's machine: where a secret doesn't say otherwise, its nodes need no approval. */
function preauthorized(text, isClientId = false) {
  if (!isClientId && !text.startsWith(OAUTH_PREFIX)) return text;
  const [id, query = ''] = text.split('?', 2);
  const given = new URLSearchParams(query);
  const added = [];
  if (!given.has('ephemeral')) added.push('ephemeral=true');
  if (!given.has('preauthorized')) added.push('preauthorized=true');
  return `${id}?${[query, ...added].filter(Boolean).join('&')}`;
}

/** GitHub's word that this job is this job: a JWT for `audience`. */
async function askForToken(audience, { env, fetch, commands }) {
  const { ACTIONS_ID_TOKEN_REQUEST_URL: url, ACTIONS_ID_TOKEN_REQUEST_TOKEN: bearer } = env;
  if (!url || !bearer) {
    throw new Failure('this job may not ask GitHub for an identity token',
      'Add `permissions: id-token: write` to the job. Pull requests from forks never have it.', { exitCode: 77 });
  }
  commands.mask(bearer);
  const whole = new URL(url);
  whole.searchParams.set('audience', audience);
  let last;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (attempt > 0) await new Promise((resolve) => setTimeout(resolve, 1000 * attempt));
    try {
      const answer = await fetch(whole, { headers: { authorization: `Bearer ${bearer}` }, signal: AbortSignal.timeout(TOKEN_DEADLINE_MS) });
      if (!answer.ok) {
        last = `GitHub answered ${answer.status}`;
        if (answer.status < 500 && answer.status !== 429) break;
        continue;
      }
      const { value } = JSON.parse((await answer.text()).slice(0, MAX_ANSWER));
      if (typeof value !== 'string' || !/^[\w=-]+\.[\w=-]+\.[\w=-]+$/.test(value)) throw new Error('the answer holds no token');
      commands.mask(value);
      return value;
    } catch (error) {
      // Not the error's own words: a JSON error quotes what it can't read.
      last = error instanceof SyntaxError ? 'its answer is no JSON' : (error.cause?.code ?? error.message);
    }
  }
  throw new Failure(`GitHub gave no identity token: ${last}`, 'Run the job again; if it stays so, look at githubstatus.com.', { exitCode: 69 });
}

module.exports = { findCredential, maskInputs, preauthorized };
