'use strict';
// What started the workflow, as far as it decides whether there can be secrets, and whether they are safe.

const fs = require('node:fs');

/**
 * @returns {{name: string, withoutSecrets: string|null}} the event, and why GitHub gives this job no secrets, if so
 */
function readTrigger(env = process.env) {
  const name = env.GITHUB_EVENT_NAME ?? '';
  return { name, withoutSecrets: whyWithoutSecrets(name, env) };
}

function whyWithoutSecrets(name, env) {
  if (env.GITHUB_ACTOR === 'dependabot[bot]') return 'it was started by Dependabot';
  if (!['pull_request', 'pull_request_review', 'pull_request_review_comment'].includes(name)) return null;
  const pull = readEvent(env.GITHUB_EVENT_PATH)?.pull_request;
  const head = pull?.head?.repo?.full_name;
  // A fork that was deleted since has no repository any more.
  return pull && head !== env.GITHUB_REPOSITORY ? 'its pull request comes from a fork' : null;
}

function readEvent(path) {
  try {
    return JSON.parse(fs.readFileSync(path, 'utf8'));
  } catch {
    return undefined;
  }
}

module.exports = { readTrigger };
