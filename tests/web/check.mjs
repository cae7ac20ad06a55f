// Checks the web page of a running server in headless Chromium.
//
//   npm ci && node check.mjs BASE_URL SCREENSHOT_FOLDER [--images FOLDER] [--chromium FILE]
//
// The server must serve the partitions that are built in. What it does not do on demand (new partitions, overload,
// tokens, hostile names) is answered in the browser in its place. Every state is looked at in both colour schemes
// and at two widths: no violation that axe-core finds, no horizontal scrolling, no console error, no breach of the
// content security policy. A screenshot of each is written. Exit code 1 if anything fails.
import { mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    images: { type: 'string', default: path.join(here, '../../data/emoji-cmml/images') },
    chromium: { type: 'string', default: '/usr/bin/chromium' },
  },
});
const [base, folder] = positionals;
if (!folder) {
  console.error('usage: node check.mjs BASE_URL SCREENSHOT_FOLDER [--images FOLDER] [--chromium FILE]');
  process.exit(2);
}

const AXE = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const AXE_TAGS = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
const WIDTHS = { wide: { width: 1280, height: 900 }, narrow: { width: 320, height: 640 } };
const PEACH = path.join(options.images, '1f351-noto.png');
const METHODS = '**/delo.v1.Classifier/';
const HOSTILE = '<img src=x onerror=alert(1)>&amp;"\'' + 'very-long-name-without-a-space-'.repeat(8);

let failures = 0;
const violations = {};

function check(what, holds, detail = '') {
  if (holds) return;
  failures += 1;
  console.log(`FAILED ${what}${detail ? `: ${detail}` : ''}`);
}

/** A page of its own context, whose console errors and policy breaches are failures. */
async function open(browser, name, settings = {}, prepare = async () => {}) {
  const context = await browser.newContext({ baseURL: base, reducedMotion: 'reduce', ...settings });
  const page = await context.newPage();
  page.expected = [];
  page.on('pageerror', (error) => check(`${name}: no script error`, false, error.message));
  page.on('console', (message) => {
    const text = message.text();
    if (['error', 'warning'].includes(message.type()) && !page.expected.some((pattern) => pattern.test(text))) check(`${name}: quiet console`, false, text);
  });
  page.on('dialog', () => check(`${name}: no dialog`, false));
  await page.exposeFunction('reportBreach', (breach) => check(`${name}: content security policy`, false, breach));
  await page.addInitScript(() => addEventListener('securitypolicyviolation', (event) => window.reportBreach(`${event.violatedDirective} ${event.blockedURI}`)));
  await prepare(page);
  const policy = (await page.goto('/')).headers()['content-security-policy'] ?? '';
  check(`${name}: strict content security policy`, policy.includes("default-src 'none'") && !policy.includes('unsafe'), policy);
  return page;
}

/** What must hold of every state, and its screenshot. */
async function inspect(page, name, state) {
  await page.evaluate(() => scrollTo(0, 0));
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  check(`${name} ${state}: no horizontal scrolling`, overflow <= 0, `${overflow} px`);
  if (!(await page.evaluate(() => 'axe' in window))) await page.evaluate(AXE);
  const found = await page.evaluate((tags) => window.axe.run(document, { runOnly: tags }), AXE_TAGS);
  violations[state] = { ...violations[state], [name]: found.violations.length };
  for (const violation of found.violations) check(`${name} ${state}: axe ${violation.id}`, false, violation.nodes.map((node) => `${node.target} ${node.failureSummary}`).join(' | '));
  await page.screenshot({ path: path.join(folder, `${state}-${name}.png`), fullPage: true });
}

async function drop(page, file, type = 'image/png', event = 'drop') {
  const content = (await readFile(file)).toString('base64');
  await page.evaluate(([data, name, mime, kind]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: mime }));
    const given = kind === 'paste' ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true, cancelable: true }) : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.getElementById('drop').dispatchEvent(given);
  }, [content, path.basename(file), type, event]);
  await page.locator('#preview').waitFor({ state: 'visible' });
}

/** Sends the form and returns the answer, or null for an error. */
async function send(page) {
  const [response] = await Promise.all([page.waitForResponse(`${METHODS}Classify`), page.locator('#send').click()]);
  await page.locator('#send:not([aria-disabled])').waitFor();
  return response.ok() ? response.json() : null;
}

/** The last request's body. */
const sent = async (page, method, action) => (await Promise.all([page.waitForRequest(`${METHODS}${method}`), action()]))[0].postDataJSON();
const text = (page, selector) => page.locator(selector).innerText();
const has = async (page, selector, wanted) => check(`${selector} says "${wanted}"`, (await text(page, selector)).includes(wanted), await text(page, selector));
const connectError = (status, code, message, headers = {}) => ({ status, headers, contentType: 'application/json', body: JSON.stringify({ code, message }) });

/** All states of the page, in one colour scheme and width. */
async function states(browser, colorScheme, width) {
  const name = `${colorScheme}-${width}`;
  let loads = {};
  const page = await open(browser, name, { colorScheme, viewport: WIDTHS[width] }, async (made) => {
    made.expected.push(/status of 4\d\d/);
    await made.route(`${METHODS}Describe`, async (route) => {
      const response = await route.fetch();
      const described = await response.json();
      await route.fulfill({ response, json: { ...described, tasks: [...described.tasks, ...(loads.tasks ?? [])] } });
    });
  });
  await page.locator('#tasks tbody').first().waitFor();
  await inspect(page, name, 'empty');

  await send(page);
  await has(page, '#error', 'neither an image nor a text');
  await has(page, '#error', 'invalid_argument');
  check('the error is an alert', (await page.locator('#error').getAttribute('role')) === 'alert');
  await inspect(page, name, 'error');

  await page.locator('#text').fill('slice of pizza with cheese');
  const answer = await send(page);
  check('an answer clears the error', (await text(page, '#error')) === '');
  await has(page, '#verdict', 'food-drink');
  await has(page, '#announce', answer.scores[0].label);
  await has(page, '#parts', 'missing: the text’s query stood in for it');
  check('the metrics of the routing are shown', (await page.locator('#verdict .value').allInnerTexts()).every((value) => /^-?\d\.\d{3}$/.test(value)));
  check('the labels are shown', (await page.locator('[aria-labelledby=part-labels] tbody tr').count()) === 5);
  check('tasks are shown', (await page.locator('[aria-labelledby=part-tasks] tbody tr').count()) >= 7);
  check('factors are shown', (await page.locator('.factors table').count()) === 3 && /\d+\/\d+/.test(await text(page, '.factors')));
  check('timings are shown', (await page.locator('.stack > span').count()) >= 2 && /ms/.test(await text(page, '[aria-labelledby=part-where-the-time-went]')));
  await inspect(page, name, 'text');

  const outcome = await sent(page, 'ReportOutcome', () => page.locator('#outcome-form button').click());
  check('the outcome names request, task and label', outcome.requestId === answer.requestId && outcome.trueTask === 'food-drink' && outcome.trueLabels[0] === answer.scores[0].label, JSON.stringify(outcome));
  await page.getByText('Recorded: the task was right, the label was right.').waitFor();
  await inspect(page, name, 'outcome');
  await page.locator('#true-task').selectOption('objects');
  check('labels follow the task', !(await text(page, '#true-labels')).includes('food-'));
  await page.locator('#outcome-form button').click();
  await page.getByText('Not counted again').waitFor();

  await page.locator('#text').fill('');
  await drop(page, PEACH);
  await has(page, '#picture-state', '1f351-noto.png');
  const image = await send(page);
  check('a picture is classified', image.task === 'food-drink' && image.modalities.text === 'PROXIED', image.task);
  await has(page, '#parts', 'missing: the picture’s query stood in for it');
  await inspect(page, name, 'picture');

  await page.locator('#text').fill('peach');
  const both = await send(page);
  check('both are classified', both.modalities.image === 'PRESENT' && both.modalities.text === 'PRESENT');
  await inspect(page, name, 'both');

  await page.locator('#remove').click();
  check('a removed picture is gone', await page.locator('#preview').isHidden());
  await page.locator('#text').fill('qwzx vbnm');
  await page.locator('#reject').fill('1');
  const rejected = await send(page);
  check('the sample is rejected', rejected.routing.rejected === true);
  await has(page, '#verdict', 'None of these');
  await has(page, '#verdict', 'below the reject share 1');
  check('a rejected sample has no true task yet', (await page.locator('#true-task').inputValue()) === '');
  await inspect(page, name, 'rejected');
  await page.locator('#reject').fill('');

  await page.locator('#task').selectOption('objects');
  await page.locator('#explain').uncheck();
  await page.locator('#timings').uncheck();
  const named = await send(page);
  check('the named task serves', named.task === 'objects' && !named.routing);
  check('no factors or timings unasked', (await page.locator('.factors, .stack').count()) === 0);
  await inspect(page, name, 'named');
  await page.locator('#task').selectOption('');

  loads = { tasks: [{ task: HOSTILE, labels: [HOSTILE, 'b'], version: '3', created: '2026-11-28T22:06:02Z', multiLabel: true, recent: {} }] };
  await page.locator('#tasks tbody', { hasText: 'onerror' }).waitFor({ timeout: 12_000 });
  await has(page, '#changes', 'was loaded');
  check('a new partition can be chosen', (await text(page, '#task')).includes('onerror'));
  await page.locator('#tasks summary').last().click();
  await page.route(`${METHODS}Classify`, (route) => route.fulfill({ json: hostileAnswer() }));
  await send(page);
  check('names stay text', (await page.locator('main img:not(#preview)').count()) === 0);
  await page.locator('#true-labels[multiple]').waitFor();
  await inspect(page, name, 'hostile');

  await page.unroute(`${METHODS}Describe`);
  await page.route(`${METHODS}Describe`, (route) => route.fulfill(connectError(503, 'unavailable', 'the server drains', { 'Retry-After': '7' })));
  page.expected.push(/status of 503/);
  await page.getByText('the server drains. Trying again in 7 seconds.').waitFor({ timeout: 12_000 });
  check('a failed refresh is no alert', (await text(page, '#error')) === '');
  await page.unroute(`${METHODS}Classify`);
  await page.route(`${METHODS}Classify`, (route) => route.fulfill(connectError(429, 'resource_exhausted', 'the queue is full', { 'Retry-After': '3' })));
  await send(page);
  await has(page, '#error', 'the queue is full. Try again in 3 seconds.');
  await inspect(page, name, 'busy');
  await page.context().close();
}

function hostileAnswer() {
  const candidates = [{ task: HOSTILE, cosine: 0.5, probability: 0.9 }, { task: 'b', cosine: -0.1 }];
  const timings = { totalSeconds: 1.2, decodeSeconds: 0.001, tokenizeSeconds: 0.2, queueSeconds: 0.1, computeSeconds: 0.7, frozenSeconds: 0.3, decisionSeconds: 0.1, adaptedSeconds: 0.2, batchSamples: 12 };
  const modalities = { image: 'PROXIED', text: 'PRESENT', textReading: { truncated: true, tokens: 40, unknownTokens: 40 } };
  const factors = [{ target: HOSTILE, modality: 'visual', a: [0, 63], b: [63, 1] }, { layer: 11, target: 'key', modality: 'textual' }];
  const routing = { task: HOSTILE, cosine: 0.5, candidates, probability: 0.9, early: true };
  return { requestId: HOSTILE, task: HOSTILE, scores: [{ label: HOSTILE, score: 0.9 }, { label: 'b' }], routing, modalities, partitionVersion: '3', model: HOSTILE, factors, timings };
}

/** Everything by keyboard: from the skip link to an answer, without the focus being lost or caught. */
async function keyboard(browser) {
  const page = await open(browser, 'keyboard');
  await page.locator('#tasks tbody').first().waitFor();
  const visited = [];
  const outlines = () => page.evaluate(() => {
    const at = document.activeElement;
    const drawn = at.type === 'file' ? at.nextElementSibling : at;
    return { id: at.id || at.tagName, outline: at === document.body || getComputedStyle(drawn).outlineStyle !== 'none' };
  });
  const tabTo = async (id) => {
    for (let i = 0; i < 40; i += 1) {
      await page.keyboard.press('Tab');
      const at = await outlines();
      visited.push(at.id);
      check(`keyboard: ${at.id} shows the focus`, at.outline);
      if (at.id === id) return;
    }
    check(`keyboard: reaches ${id}`, false, visited.join(' '));
  };
  await page.keyboard.press('Tab');
  check('keyboard: the skip link is first', (await page.evaluate(() => document.activeElement.className)) === 'skip');
  await tabTo('file');
  await tabTo('text');
  await page.keyboard.type('violin');
  await tabTo('task');
  await tabTo('timings');
  await page.keyboard.press('Space');
  await tabTo('send');
  const first = await sent(page, 'Classify', () => page.keyboard.press('Enter'));
  check('keyboard: options are sent', first.text === 'violin' && first.timings === false && first.explain === true, JSON.stringify(first));
  await page.locator('#result').waitFor();
  await page.locator('#send:not([aria-disabled])').waitFor();
  check('keyboard: the focus stays on the button', (await outlines()).id === 'send');
  await tabTo('true-task');
  await tabTo('true-labels');
  await tabTo('BUTTON');
  await page.keyboard.press('Enter');
  await page.getByText('Recorded').waitFor();
  await tabTo('SUMMARY');
  await page.keyboard.press('Enter');
  check('keyboard: labels open', (await page.locator('#tasks details[open]').count()) === 1);
  await tabTo('BODY');
  await page.locator('#text').focus();
  await page.keyboard.press('Control+A');
  await page.keyboard.type('tiger');
  const second = await sent(page, 'Classify', () => page.keyboard.press('Control+Enter'));
  check('keyboard: Ctrl+Enter sends', second.text === 'tiger' && second.reject === undefined && second.topK === 5, JSON.stringify(second));
  await page.context().close();
}

/** A refresh keeps what the reader has open, and rests while the page is hidden. */
async function refreshing(browser) {
  const page = await open(browser, 'refreshing');
  await page.locator('#tasks tbody').first().waitFor();
  await page.locator('#tasks summary').first().click();
  await page.locator('#task').selectOption('objects');
  await page.waitForResponse(`${METHODS}Describe`, { timeout: 12_000 });
  check('a refresh keeps an open list', (await page.locator('#tasks details[open]').count()) === 1);
  check('a refresh keeps the chosen task', (await page.locator('#task').inputValue()) === 'objects');
  let calls = 0;
  page.on('request', (request) => { calls += request.url().endsWith('/Describe'); });
  const show = (hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { configurable: true, value });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  await show(true);
  await page.waitForTimeout(6500);
  check('no refresh while hidden', calls === 0, `${calls} calls`);
  await show(false);
  await page.waitForTimeout(1000);
  check('a refresh when shown again', calls === 1, `${calls} calls`);
  await page.context().close();
}

/** What exceeds the server's limits is told before it is sent; pictures come by choice and by paste, too. */
async function inputs(browser) {
  const page = await open(browser, 'inputs', {}, (made) => made.route(`${METHODS}Describe`, async (route) => {
    const response = await route.fetch();
    const described = await response.json();
    await route.fulfill({ response, json: { ...described, limits: { ...described.limits, maxImageBytes: '5000', maxTextBytes: '20' } } });
  }));
  await page.locator('#tasks tbody').first().waitFor();
  let calls = 0;
  page.on('request', (request) => { calls += request.url().endsWith('/Classify'); });
  await page.locator('#file').setInputFiles({ name: 'large.png', mimeType: 'image/png', buffer: Buffer.alloc(6000) });
  await has(page, '#picture-error', 'the server takes at most 4.88 KiB');
  await page.locator('#file').setInputFiles({ name: 'notes.txt', mimeType: 'text/plain', buffer: Buffer.alloc(10) });
  await has(page, '#picture-error', 'notes.txt is not a picture');
  await page.locator('#text').fill('äöü and many more letters');
  await has(page, '#text-error', 'the server takes at most 20 bytes');
  await page.locator('#send').click();
  check('nothing too large is sent', calls === 0);
  await inspect(page, 'light-wide', 'too-large');
  await page.locator('#text').fill('peach');
  await page.locator('#file').setInputFiles(PEACH);
  await page.locator('#preview').waitFor({ state: 'visible' });
  check('a chosen picture clears the fault', (await page.locator('#picture-error').textContent()) === '');
  await page.locator('#remove').click();
  await drop(page, PEACH, 'image/png', 'paste');
  const body = await sent(page, 'Classify', () => page.locator('#send').click());
  check('the picture is sent in base64', Buffer.from(body.image, 'base64').equals(await readFile(PEACH)));
  await page.context().close();
}

/** The token field is there only when the server asks for one. */
async function token(browser) {
  const page = await open(browser, 'token', { viewport: WIDTHS.narrow }, async (made) => {
    made.expected.push(/status of 401/);
    await made.route(`${METHODS}*`, async (route) => (route.request().headers().authorization === 'Bearer right' ? route.continue() : route.fulfill(connectError(401, 'unauthenticated', 'send a token'))));
  });
  await page.locator('#access').waitFor();
  await inspect(page, 'light-narrow', 'token');
  let calls = 0;
  page.on('request', (request) => { calls += request.url().endsWith('/Describe'); });
  await page.waitForTimeout(6000);
  check('no refresh without the token', calls === 0, `${calls} calls`);
  await page.locator('#token').fill('wrong');
  await page.keyboard.press('Enter');
  await page.getByText('The server refused this token.').waitFor();
  await page.locator('#token').fill('right');
  await page.keyboard.press('Enter');
  await page.locator('#tasks tbody').first().waitFor();
  check('an accepted token hides its field', await page.locator('#access').isHidden());
  check('the token outlasts no tab', (await page.evaluate(() => localStorage.length)) === 0 && !(await page.context().cookies()).length);
  await page.context().close();
}

/** 200 % zoom is half the width in CSS pixels; text alone at 200 % must fit as well. */
async function zoom(browser) {
  const page = await open(browser, 'zoom', { viewport: { width: 640, height: 450 }, deviceScaleFactor: 2 });
  await page.locator('#tasks tbody').first().waitFor();
  await page.locator('#text').fill('slice of pizza with cheese');
  await send(page);
  await inspect(page, 'zoom', 'zoomed');
  await page.setViewportSize(WIDTHS.wide);
  await page.evaluate(() => document.documentElement.style.setProperty('font-size', '200%'));
  await inspect(page, 'large-text', 'zoomed');
  await page.context().close();
}

await mkdir(folder, { recursive: true });
const browser = await chromium.launch({ executablePath: options.chromium, args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] });
try {
  for (const scenario of [keyboard, refreshing, inputs, token, zoom]) await attempt(scenario.name, () => scenario(browser));
  for (const scheme of ['light', 'dark']) for (const width of Object.keys(WIDTHS)) await attempt(`${scheme} ${width}`, () => states(browser, scheme, width));
} finally {
  await browser.close();
}

async function attempt(name, scenario) {
  try {
    await scenario();
    console.log(`done: ${name}`);
  } catch (error) {
    check(name, false, error.stack);
  }
}

console.log('axe-core violations by state:');
for (const [state, found] of Object.entries(violations)) console.log(`  ${state}: ${Object.entries(found).map(([name, count]) => `${name} ${count}`).join(', ')}`);
console.log(failures ? `${failures} failed` : 'all held');
process.exitCode = failures ? 1 : 0;
