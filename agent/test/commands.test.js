'use strict';
const assert = require('node:assert/strict');
const { test } = require('node:test');
const { harmless, plain } = require('../commands');
const { keptCommands } = require('./fixture');

/** Whether the runner would take a line for a command; as `ActionCommand.TryParseV2` and `TryParse` of actions/runner. */
const isCommand = (line) => line.trimStart().startsWith('::') || line.includes('##[');

test('no line of others is a command', () => {
  const hostile = [
    '::set-output name=x::y', '  ::add-mask::x', '\t::error::x', '\u200b::error::x', '\u00ad:\u2060:error::x', 'a ##[error]b', '#\u200b#[group]x',
    '\u001b[0m::error::x', 'a\n::error::x', 'a\r::error::x', '\u2028::error::x', '::::', '\ufeff::warning::x',
  ];
  for (const text of hostile) assert.ok(!isCommand(harmless(text)), JSON.stringify([text, harmless(text)]));
  assert.equal(harmless('builder-1: built a::b'), 'builder-1: built a::b');
});

test('control characters go, letters of all kinds stay', () => {
  assert.equal(plain('a\u0000\u001b[31mb\r\nc\u009bd\u202e'), 'a[31mb\ncd');
  assert.equal(plain('häuser 家 🏠'), 'häuser 家 🏠');
});

test('annotations are one line each, whatever stands in them', () => {
  const commands = keptCommands();
  commands.error('a: b, c\n::warning::x', 'first\n::error::second\r\n100 % wrong');
  assert.deepEqual(commands.lines, ['::error title=a%3A b%2C c %3A%3Awarning%3A%3Ax::first%0A::error::second%0A100 %25 wrong']);
});

test('a secret of several lines is masked line by line', () => {
  const commands = keptCommands();
  commands.mask('one\n\n two%\r\nthree');
  assert.deepEqual(commands.lines, ['::add-mask::one', '::add-mask::two%25', '::add-mask::three']);
});

test('while others are quoted, the runner obeys nothing', () => {
  const commands = keptCommands();
  const quote = commands.quote('log of nix-1\n::error::x');
  quote.line('::endgroup::');
  quote.aside((aside) => aside.warning('t', 'w'));
  quote.end();
  const [group, stop, line, resume, warning, again, last, end] = commands.lines;
  const token = /^::stop-commands::([0-9a-f-]{36})$/.exec(stop)[1];
  assert.equal(group, '::group::log of nix-1%0A::error::x');
  assert.equal(line, ' : :endgroup::');
  assert.deepEqual([resume, warning, again, last, end], [`::${token}::`, '::warning title=t::w', stop, `::${token}::`, '::endgroup::']);
  assert.notEqual(keptCommands().quote('').line, undefined);
});
