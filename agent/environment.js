'use strict';
// What of the step's environment the agent gets. A list of what it needs, not of what it mustn't see: jobs have secrets of
// their own in theirs.

const KEPT = new Set([
  'PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'TZ', 'TMPDIR', 'XDG_RUNTIME_DIR', 'XDG_CONFIG_HOME', 'XDG_STATE_HOME', 'XDG_DATA_HOME',
  'XDG_CACHE_HOME', 'SSL_CERT_FILE', 'SSL_CERT_DIR', 'LOCALE_ARCHIVE', 'CI',
  'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY', 'http_proxy', 'https_proxy', 'all_proxy', 'no_proxy',
  // By this the runner finds what a job has left, and ends it: our safety net.
  'RUNNER_TRACKING_ID',
  'TS_CONTROL_URL', 'NIXTAIL_LOG',
]);
const KEPT_PREFIXES = ['NIX_', 'LC_'];

/** The agent's environment. */
function agentEnvironment(env, more = {}) {
  const kept = Object.entries(env).filter(([name]) => KEPT.has(name) || KEPT_PREFIXES.some((prefix) => name.startsWith(prefix)));
  return { ...Object.fromEntries(kept), NO_COLOR: '1', ...more };
}

module.exports = { agentEnvironment };
