// The page of a delo server: sends samples, shows answers, and follows what is loaded. It speaks the Connect
// protocol's unary JSON. Whatever comes from the server or from a file is shown as text, never as HTML.

const REFRESH_MILLISECONDS = 5000;
const CLASSIFY_TIMEOUT_MILLISECONDS = 120_000;
const OTHER_TIMEOUT_MILLISECONDS = 10_000;
const SHOWN_CANDIDATES = 10;

// ---------------------------------------------------------------------------------------------- elements

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a string child becomes text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Writes only what changed, so that selections stay and screen readers stay quiet. */
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** A bar beside a number that says the same, hence hidden from screen readers. */
function bar(share) {
  const fill = element('span');
  fill.style.setProperty('--share', Math.min(1, Math.max(0, share || 0)));
  return element('span', { class: 'bar', 'aria-hidden': 'true' }, fill);
}

function table(caption, heads, rows, foot) {
  const head = heads.map((text, i) => element('th', { scope: 'col', class: i ? 'number' : '' }, text));
  const made = element('table', {}, element('caption', { class: 'unseen' }, caption), element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows));
  if (foot) made.append(element('tfoot', {}, foot));
  return made;
}

function row(head, cells, name = '') {
  return element('tr', { class: name }, element('th', { scope: 'row' }, ...head), ...cells.map((text) => element('td', { class: 'number' }, text)));
}

function part(title, ...children) {
  const heading = element('h3', {}, title);
  heading.id = `part-${title.toLowerCase().replaceAll(' ', '-')}`;
  return element('section', { 'aria-labelledby': heading.id }, heading, ...children);
}

function facts(pairs) {
  return element('dl', { class: 'facts' }, ...pairs.flatMap(([term, text, name = '']) => [element('dt', {}, term), element('dd', { class: name }, text)]));
}

/** Makes the options of a select `values`, the first of them with its own text, and keeps what is selected if it can. */
function setOptions(select, first, values) {
  const wanted = JSON.stringify([first, values]);
  if (select.dataset.options === wanted) return;
  select.dataset.options = wanted;
  const before = select.value;
  const nothing = first === null ? [] : [element('option', { value: '' }, first)];
  select.replaceChildren(...nothing, ...values.map((value) => element('option', { value }, value)));
  if (values.includes(before)) select.value = before;
}

// ---------------------------------------------------------------------------------------------- numbers

const NONE = '–';
const decimals = new Intl.NumberFormat('en', { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const tenths = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const significant = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const counts = new Intl.NumberFormat('en');
const days = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric', timeZone: 'UTC' });

/** A number of proto3 JSON: absent is `absent`, 64-bit integers are strings. */
const number = (value, absent = 0) => (value === undefined || value === null ? absent : Number(value));
const decimal = (value) => (Number.isFinite(value) ? decimals.format(value) : NONE);
const percent = (value) => (Number.isFinite(value) ? `${tenths.format(100 * value)}\u00a0%` : NONE);
const milliseconds = (seconds) => `${significant.format(seconds * 1000)} ms`;
const plural = (count, one, many = `${one}s`) => `${counts.format(count)} ${count === 1 ? one : many}`;

function bytes(count) {
  if (count < 1024) return plural(count, 'byte');
  return count < 1024 ** 2 ? `${significant.format(count / 1024)} KiB` : `${significant.format(count / 1024 ** 2)} MiB`;
}

function span(seconds) {
  return seconds < 90 ? plural(Math.round(seconds), 'second') : plural(Math.round(seconds / 60), 'minute');
}

// ---------------------------------------------------------------------------------------------- calls

class CallError extends Error {
  constructor(code, message, retrySeconds) {
    super(/[.!?…]$/.test(message) ? message : `${message}.`);
    this.code = code;
    this.retrySeconds = retrySeconds;
  }
}

/** Calls a method of delo.v1.Classifier. Throws a CallError. */
async function call(method, message, timeout = OTHER_TIMEOUT_MILLISECONDS) {
  const headers = { 'Content-Type': 'application/json', 'Connect-Protocol-Version': '1' };
  const token = sessionStorage.getItem('token');
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer, body;
  try {
    answer = await fetch(`delo.v1.Classifier/${method}`, { method: 'POST', headers, body: JSON.stringify(message), signal: AbortSignal.timeout(timeout), cache: 'no-store' });
    body = await answer.text();
  } catch (error) {
    if (error.name === 'TimeoutError') throw new CallError('deadline_exceeded', `No answer within ${span(timeout / 1000)}.`);
    throw new CallError('unavailable', 'The server cannot be reached.');
  }
  let read = {};
  try {
    read = JSON.parse(body);
  } catch {
    if (answer.ok) throw new CallError('internal', 'The answer is not JSON.');
  }
  if (answer.ok) return read;
  if (answer.status === 401) showAccess(Boolean(token));
  const retry = Number.parseFloat(answer.headers.get('Retry-After'));
  throw new CallError(String(read.code ?? 'unknown'), String(read.message || `HTTP status ${answer.status}`), retry > 0 ? retry : 0);
}

const ERROR_TITLES = {
  invalid_argument: 'The server cannot use this sample',
  unauthenticated: 'The server asks for a token',
  permission_denied: 'This token does not allow it',
  not_found: 'Not found',
  resource_exhausted: 'The server is busy',
  unavailable: 'The server is not available',
  deadline_exceeded: 'It took too long',
};

const retryText = (error) => (error.retrySeconds ? ` Try again in ${span(error.retrySeconds)}.` : '');

// ---------------------------------------------------------------------------------------------- token

function showAccess(refused) {
  byId('access').hidden = false;
  setText(byId('token-state'), refused ? 'The server refused this token.' : '');
}

function hideAccess() {
  const access = byId('access');
  const focused = access.contains(document.activeElement);
  access.hidden = true;
  byId('token').value = '';
  if (focused) byId('text').focus();
}

byId('access-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem('token', byId('token').value);
  setText(byId('token-state'), 'Trying the token…');
  refresh();
});

// ---------------------------------------------------------------------------------------------- sample

/** What the server last said of itself; `limits` are absent until it has. */
let described = { tasks: [] };
/** The picture to send: `{ file, width, height }`; null where there is none. */
let picture = null;
let sending = false;

function pictureFault({ file, width, height }) {
  const limits = described.limits ?? {};
  const most = number(limits.maxImageBytes, Infinity);
  const side = number(limits.maxImageSide, Infinity);
  const pixels = number(limits.maxImagePixels, Infinity);
  if (file.type && !file.type.startsWith('image/')) return `${file.name} is not a picture.`;
  if (file.size > most) return `${file.name} has ${bytes(file.size)}; the server takes at most ${bytes(most)}.`;
  if (Math.max(width, height) > side) return `${file.name} has ${width} × ${height} pixels; the server takes at most ${counts.format(side)} on a side.`;
  if (width * height > pixels) return `${file.name} has ${counts.format(width * height)} pixels; the server takes at most ${counts.format(pixels)}.`;
  return '';
}

function textFault(text) {
  const most = number(described.limits?.maxTextBytes, Infinity);
  const size = new TextEncoder().encode(text).length;
  return size > most ? `The text has ${bytes(size)}; the server takes at most ${bytes(most)}.` : '';
}

function choosePicture(files) {
  const file = files[0];
  if (!file) return;
  const chosen = { file, width: 0, height: 0 };
  const fault = pictureFault(chosen);
  setText(byId('picture-error'), fault);
  if (fault) return;
  picture = chosen;
  const others = files.length > 1 ? ` Only the first of ${files.length} files is taken.` : '';
  const say = (size) => setText(byId('picture-state'), `${file.name}, ${bytes(file.size)}${size}.${others}`);
  say('');
  const preview = byId('preview');
  URL.revokeObjectURL(preview.src);
  preview.onload = () => {
    preview.hidden = false;
    [chosen.width, chosen.height] = [preview.naturalWidth, preview.naturalHeight];
    say(`, ${chosen.width} × ${chosen.height} pixels`);
    if (picture === chosen) setText(byId('picture-error'), pictureFault(chosen));
  };
  preview.onerror = () => {
    preview.hidden = true;
    say('; this browser cannot show it');
  };
  preview.src = URL.createObjectURL(file);
  byId('remove').hidden = false;
}

function removePicture() {
  const preview = byId('preview');
  URL.revokeObjectURL(preview.src);
  preview.onload = preview.onerror = null;
  preview.removeAttribute('src');
  preview.hidden = byId('remove').hidden = true;
  picture = null;
  setText(byId('picture-error'), '');
  setText(byId('picture-state'), 'Drop or paste one here.');
  byId('file').focus();
}

/** The file's bytes in base64. */
function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(',') + 1));
    reader.onerror = () => reject(new CallError('invalid_argument', `${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function readSample() {
  const sample = { maxCandidates: SHOWN_CANDIDATES, explain: byId('explain').checked, timings: byId('timings').checked };
  if (picture) sample.image = await base64(picture.file);
  if (byId('text').value) sample.text = byId('text').value;
  if (byId('task').value) sample.task = byId('task').value;
  if (byId('top-k').value) sample.topK = byId('top-k').valueAsNumber;
  if (byId('reject').value) sample.reject = byId('reject').valueAsNumber;
  return sample;
}

async function send() {
  if (sending) return;
  const faults = [picture ? pictureFault(picture) : '', textFault(byId('text').value)];
  setText(byId('picture-error'), faults[0]);
  setText(byId('text-error'), faults[1]);
  if (faults[0]) return byId('file').focus();
  if (faults[1]) return byId('text').focus();
  const button = byId('send');
  sending = true;
  button.setAttribute('aria-disabled', 'true');
  setText(button, 'Classifying…');
  setText(byId('announce'), '');
  byId('error').replaceChildren();
  const name = picture?.file.name;
  try {
    const sample = await readSample();
    const begin = performance.now();
    const answer = await call('Classify', sample, CLASSIFY_TIMEOUT_MILLISECONDS);
    showAnswer({ answer, sample, picture: name, seconds: (performance.now() - begin) / 1000 });
  } catch (error) {
    showError(error);
  } finally {
    sending = false;
    button.removeAttribute('aria-disabled');
    setText(button, 'Classify');
  }
  const panel = byId('answer');
  if (panel.getBoundingClientRect().top > window.innerHeight / 2 || panel.getBoundingClientRect().top < 0) panel.scrollIntoView();
}

const holdsFiles = (event) => event.dataTransfer?.types.includes('Files');

byId('file').addEventListener('change', (event) => {
  choosePicture(event.target.files);
  event.target.value = '';
});
byId('remove').addEventListener('click', removePicture);
document.addEventListener('dragover', (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  byId('drop').classList.add('over');
});
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) byId('drop').classList.remove('over');
});
document.addEventListener('drop', (event) => {
  byId('drop').classList.remove('over');
  if (!holdsFiles(event)) return;
  event.preventDefault();
  choosePicture(event.dataTransfer.files);
});
document.addEventListener('paste', (event) => {
  const files = event.clipboardData?.files ?? [];
  if (!files.length || event.clipboardData.types.includes('text/plain')) return;
  event.preventDefault();
  choosePicture(files);
});
byId('text').addEventListener('input', (event) => setText(byId('text-error'), textFault(event.target.value)));
byId('sample-form').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
byId('sample-form').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  byId('sample-form').requestSubmit();
});

// ---------------------------------------------------------------------------------------------- answer

/** The answer that is shown: `{ answer, sample, picture, seconds }`, the sample as it was sent. */
let shown = null;

function showError(error) {
  byId('result').hidden = byId('empty').hidden = true;
  shown = null;
  const title = element('strong', {}, ERROR_TITLES[error.code] ?? 'The call failed');
  const code = element('span', { class: 'hint' }, `Code: ${error.code ?? 'unknown'}`);
  byId('error').replaceChildren(title, element('span', {}, `${error.message}${retryText(error)}`), code);
}

function showAnswer(given) {
  shown = given;
  const { answer } = given;
  const best = answer.scores?.[0];
  const summary = best ? `Task ${answer.task}, label ${best.label}, score ${decimal(number(best.score))}.` : 'None of these: the sample was rejected.';
  byId('empty').hidden = true;
  byId('result').hidden = false;
  byId('verdict').replaceChildren(...verdictParts(given));
  byId('parts').replaceChildren(column(labelScores(answer), textReading(answer), requestFacts(given)), column(taskProbabilities(answer), timeTable(given)));
  byId('factors').replaceChildren(...[factorTables(answer)].filter(Boolean));
  resetOutcome();
  setText(byId('announce'), summary);
}

/** The parts that there are, one below the other. */
function column(...parts) {
  return element('div', { class: 'column' }, ...parts.filter(Boolean));
}

function verdictParts({ answer, sample }) {
  const routing = answer.routing;
  const rejected = routing?.rejected === true;
  const best = answer.scores?.[0];
  const head = element('div', {}, element('p', { class: 'quiet' }, sample.task ? 'Task, as the request named it' : rejected ? 'Task' : 'Chosen task'));
  head.append(element('p', { class: 'task' }, rejected ? 'None of these' : answer.task ?? NONE));
  if (best) head.append(element('p', {}, 'Best label: ', element('strong', {}, best.label), `, score ${decimal(number(best.score))}`));
  if (!routing) return [head];
  if (rejected) {
    const bound = sample.reject === undefined ? 'the reject share that the server is set to' : `the reject share ${sample.reject}`;
    head.append(element('p', {}, `Typicality ${decimal(number(routing.typicality, NaN))} is below ${bound}, so the sample got no labels. Likeliest of the loaded tasks: `, element('strong', {}, routing.task ?? NONE), '.'));
  }
  if (routing.early) head.append(element('p', { class: 'quiet' }, 'Answered early: by the statistics of the frozen backbone alone.'));
  const metrics = [
    ['Probability', number(routing.probability, NaN), 'of the task; those of all tasks sum to 1'],
    ['Margin', number(routing.margin, NaN), 'ahead of the second task'],
    ['Cosine', number(routing.cosine), 'of the sample with the task’s key'],
    ['Typicality', number(routing.typicality, NaN), 'share of the task’s own samples that fit less well'],
  ];
  const list = metrics.map(([term, value, hint]) => element('div', {}, element('dt', {}, term), element('dd', { class: 'value' }, decimal(value)), element('dd', { class: 'hint' }, Number.isFinite(value) ? hint : 'not given')));
  return [head, element('dl', { class: 'metrics' }, ...list)];
}

function labelScores(answer) {
  if (!answer.scores?.length) return null;
  const rows = answer.scores.map((score, i) => row([score.label, bar(number(score.score))], [decimal(number(score.score))], i ? '' : 'chosen'));
  return part('Labels', table('Labels by falling score', ['Label', 'Score'], rows));
}

function taskProbabilities(answer) {
  const candidates = answer.routing?.candidates ?? [];
  if (!candidates.length) return null;
  const given = candidates.some((candidate) => candidate.probability !== undefined);
  const rows = candidates.map((candidate) => {
    const probability = number(candidate.probability, NaN);
    const cells = given ? [decimal(probability), decimal(number(candidate.cosine))] : [decimal(number(candidate.cosine))];
    return row([candidate.task ?? '', bar(given ? probability : number(candidate.cosine))], cells, candidate.task === answer.task ? 'chosen' : '');
  });
  const others = described.tasks.length - candidates.length;
  const rest = 1 - candidates.reduce((sum, candidate) => sum + number(candidate.probability), 0);
  if (given && others > 0) rows.push(row([plural(others, 'other task'), bar(rest)], [decimal(Math.max(0, rest)), '']));
  return part('Tasks', table('Tasks, the likeliest first', given ? ['Task', 'Probability', 'Cosine'] : ['Task', 'Cosine'], rows));
}

function textReading(answer) {
  const { image, text, textReading: read } = answer.modalities ?? {};
  const presence = (value, other) => (value === 'PROXIED' ? `missing: the ${other}’s query stood in for it` : value === 'PRESENT' ? 'present' : NONE);
  const pairs = [['Picture', presence(image, 'text')], ['Text', presence(text, 'picture')]];
  if (read) {
    const [tokens, unknown] = [number(read.tokens), number(read.unknownTokens)];
    pairs.push(['Tokens', `${counts.format(tokens)} read, ${unknown ? counts.format(unknown) : 'none'} unknown`]);
    pairs.push(['Length', read.truncated ? 'cut: the text is longer than the model reads' : 'read to its end']);
    if (!read.understood) pairs.push(['Note', 'The model knows no word of the text, so the answer tells nothing about what it says.']);
  }
  return part('How it was read', facts(pairs));
}

/** Where the time went: `[name, seconds, colour]` of what took any. */
function timeParts(times) {
  const seconds = (key) => number(times[`${key}Seconds`]);
  const inBatch = seconds('frozen') + seconds('decision') + seconds('adapted');
  const known = seconds('decode') + seconds('tokenize') + seconds('queue') + seconds('compute');
  return [
    ['Decode picture', seconds('decode'), 1],
    ['Read text', seconds('tokenize'), 2],
    ['Queue', seconds('queue'), 3],
    ['Frozen pass', seconds('frozen'), 4],
    ['Decide task', seconds('decision'), 5],
    ['Adapted pass', seconds('adapted'), 6],
    ['Rest of batch', seconds('compute') - inBatch, 7],
    ['Thread wait', seconds('total') - known, 8],
  ].filter(([, value]) => value > 5e-7);
}

function timeTable({ answer, seconds: measured }) {
  if (!answer.timings) return null;
  const total = number(answer.timings.totalSeconds);
  const shownParts = timeParts(answer.timings);
  const sum = shownParts.reduce((left, [, value]) => left + value, 0) || 1;
  const stack = element('div', { class: 'stack', 'aria-hidden': 'true' });
  const rows = shownParts.map(([name, value, colour], i) => {
    const piece = element('span', { class: `part-${colour}` }, value / sum > 0.05 ? String(i + 1) : '');
    piece.style.setProperty('--share', value / sum);
    stack.append(piece);
    const swatch = element('span', { class: `swatch part-${colour}`, 'aria-hidden': 'true' }, String(i + 1));
    return row([element('span', { class: 'named' }, swatch, name)], [milliseconds(value), percent(value / sum)]);
  });
  const times = table('Where the time went', ['Part', 'Time', 'Share'], rows, row(['Total'], [milliseconds(total), '']));
  const batch = number(answer.timings.batchSamples, 1);
  const shared = batch > 1 ? `The batch had ${counts.format(batch)} samples, which share its passes.` : 'The batch had this sample only.';
  return part('Where the time went', stack, times, element('p', { class: 'hint' }, `${shared} From this page, network included: ${milliseconds(measured)}.`));
}

/** The chosen factors of one map: a strip of the pool, A above B, the best the strongest; and the pairs in numbers. */
function chosenFactors(selected, pool) {
  const [a, b] = [selected?.a ?? [], selected?.b ?? []];
  const slots = [a, b].flatMap((chosen, line) => Array.from({ length: pool }, (_, slot) => {
    const rank = chosen.indexOf(slot);
    const place = { x: slot + 0.06, y: line + 0.06, width: 0.88, height: 0.84 };
    return rank < 0 ? svg('rect', { ...place, class: 'slot' }) : svg('rect', { ...place, class: 'chosen', 'fill-opacity': 1 - (0.6 * rank) / chosen.length });
  }));
  const strip = svg('svg', { class: 'strip', viewBox: `0 0 ${pool} 2`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, ...slots);
  const pairs = a.map((factor, i) => element('span', {}, `${factor}/${b[i] ?? NONE} `));
  return element('td', {}, strip, element('span', { class: 'pairs mono' }, ...pairs));
}

function factorTables(answer) {
  const all = answer.factors ?? [];
  if (!all.length) return null;
  const distinct = (values) => [...new Set(values)];
  const [targets, modalities] = [distinct(all.map((one) => one.target)), distinct(all.map((one) => one.modality))];
  const layers = distinct(all.map((one) => number(one.layer))).sort((left, right) => left - right);
  const pool = all.reduce((most, one) => Math.max(most, number(one.experts)), 1);
  const tables = targets.map((target) => {
    const rows = layers.map((layer) => {
      const of = (modality) => all.find((one) => number(one.layer) === layer && one.target === target && one.modality === modality);
      return element('tr', {}, element('th', { scope: 'row' }, String(layer)), ...modalities.map((modality) => chosenFactors(of(modality), pool)));
    });
    const head = ['Layer', ...modalities].map((text) => element('th', { scope: 'col' }, text));
    return element('table', {}, element('caption', {}, target), element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...rows));
  });
  const hint = 'Pairs A/B of low-rank factors by falling score. In each strip, A is above and B below, counted from 0 at the left; the stronger the colour, the higher the score.';
  return part('Chosen factors', element('p', { class: 'hint' }, hint), element('div', { class: 'factors' }, ...tables));
}

function requestFacts({ answer, sample, picture: name }) {
  const pairs = [['Request', answer.requestId ?? NONE, 'mono']];
  if (name) pairs.push(['Picture', name]);
  if (sample.text) pairs.push(['Text', sample.text.length > 200 ? `${sample.text.slice(0, 200)}…` : sample.text]);
  pairs.push(['Partition', `version ${answer.partitionVersion ?? 0}`], ['Model', answer.model ?? NONE]);
  return part('Request', facts(pairs));
}

// ---------------------------------------------------------------------------------------------- outcome

function labelsOf(task) {
  const known = described.tasks.find((one) => one.task === task);
  if (known) return known.labels ?? [];
  return task === shown?.answer.task ? (shown.answer.scores ?? []).map((score) => score.label) : [];
}

function resetOutcome() {
  const { answer } = shown;
  setText(byId('outcome-state'), '');
  offerTasks();
  byId('true-task').value = answer.task ?? '';
  offerLabels();
}

function offerTasks() {
  if (!shown) return;
  const names = described.tasks.map((one) => one.task);
  if (shown.answer.task && !names.includes(shown.answer.task)) names.push(shown.answer.task);
  setOptions(byId('true-task'), 'Not said', names);
}

function offerLabels() {
  const task = byId('true-task').value;
  const select = byId('true-labels');
  const several = described.tasks.find((one) => one.task === task)?.multiLabel === true;
  select.multiple = several;
  setText(byId('true-labels-label'), several ? 'True labels (any number)' : 'True label');
  setOptions(select, several ? null : 'Not said', labelsOf(task));
  const best = shown?.answer.task === task ? shown.answer.scores?.[0]?.label : undefined;
  if (!several) select.value = best ?? '';
}

byId('true-task').addEventListener('change', offerLabels);
byId('outcome-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const state = byId('outcome-state');
  const trueLabels = [...byId('true-labels').selectedOptions].map((option) => option.value).filter(Boolean);
  const outcome = { requestId: shown?.answer.requestId, trueTask: byId('true-task').value, trueLabels };
  setText(state, 'Reporting…');
  try {
    const judgement = await call('ReportOutcome', outcome);
    const judged = (what, right) => (right === undefined ? [] : [`the ${what} was ${right ? 'right' : 'wrong'}`]);
    const said = [...judged('task', judgement.taskCorrect), ...judged('label', judgement.labelCorrect)].join(', ');
    setText(state, `${judgement.counted ? 'Recorded' : 'Not counted again, since it was reported before'}: ${said}.`);
    refresh();
  } catch (error) {
    setText(state, `Not recorded: ${error.message}${retryText(error)}`);
  }
});

// ---------------------------------------------------------------------------------------------- what is loaded

/** Row groups of the table by task: kept, so that focus and opened lists outlast a refresh. */
const taskGroups = new Map();
let refreshing = false;
let timer;

function makeTaskGroup() {
  const cells = { name: element('div', { class: 'name' }), summary: element('summary'), labels: element('p', { class: 'hint' }) };
  for (const key of ['samples', 'expected', 'right']) cells[key] = element('td');
  const head = element('th', { scope: 'rowgroup', colspan: '3' }, cells.name, element('details', {}, cells.summary, cells.labels));
  cells.body = element('tbody', {}, element('tr', {}, head), element('tr', {}, cells.samples, cells.expected, cells.right));
  return cells;
}

function fillTaskGroup(cells, task) {
  const recent = task.recent ?? {};
  const created = new Date(task.created ?? NaN);
  const trained = Number.isNaN(created.getTime()) ? '' : `, trained ${days.format(created)}`;
  const several = task.multiLabel ? ' (any number true)' : '';
  setText(cells.name, task.task);
  setText(cells.summary, `version ${task.version ?? 0}, ${plural((task.labels ?? []).length, 'label')}${several}${trained}`);
  setText(cells.labels, (task.labels ?? []).join(', '));
  setText(cells.samples, counts.format(number(recent.samples)));
  setText(cells.expected, percent(number(recent.expectedAccuracy, NaN)));
  setText(cells.right, outcomes(recent));
}

const outcomes = (recent) => (number(recent.outcomes) ? `${counts.format(number(recent.right))} of ${counts.format(number(recent.outcomes))}` : NONE);

function showRecent(recent) {
  const samples = plural(number(recent.samples), 'sample');
  const right = `expected right: ${percent(number(recent.expectedAccuracy, NaN))}; reported right: ${outcomes(recent)}`;
  setText(byId('recent'), `In the last ${span(number(recent.windowSeconds))}: ${samples}; ${right}.`);
}

/** Says which partitions came, went or changed since the last description. */
function changes(before, after) {
  const versions = new Map(before.map((task) => [task.task, task.version]));
  const said = after.flatMap(({ task, version }) => (!versions.has(task) ? [`${task} was loaded`] : versions.get(task) !== version ? [`${task} is at version ${version}`] : []));
  const names = new Set(after.map((task) => task.task));
  return [...said, ...before.filter((task) => !names.has(task.task)).map((task) => `${task.task} was unloaded`)];
}

function showDescription(given) {
  const tasks = given.tasks ?? [];
  const said = described.version === undefined ? [] : changes(described.tasks, tasks);
  described = { version: '', ...given, tasks };
  setText(byId('server'), [given.model, given.version && `delo ${given.version}`].filter(Boolean).join(' · '));
  for (const [name, cells] of taskGroups) {
    if (tasks.some((task) => task.task === name)) continue;
    cells.body.remove();
    taskGroups.delete(name);
  }
  const bodies = byId('tasks').tBodies;
  tasks.forEach((task, i) => {
    const cells = taskGroups.get(task.task) ?? makeTaskGroup();
    taskGroups.set(task.task, cells);
    fillTaskGroup(cells, task);
    if (bodies[i] !== cells.body) byId('tasks').insertBefore(cells.body, bodies[i] ?? null);
  });
  if (given.recent) showRecent(given.recent);
  if (said.length) setText(byId('changes'), `${said.join('; ')}.`);
  setOptions(byId('task'), 'Automatic', tasks.map((task) => task.task));
  offerTasks();
  hideAccess();
}

/** Asks what is loaded, now and every few seconds while the page is seen and no token is missing. */
async function refresh() {
  if (refreshing || document.hidden) return;
  clearTimeout(timer);
  refreshing = true;
  let wait = REFRESH_MILLISECONDS;
  const clock = new Date().toLocaleTimeString('en-GB');
  try {
    showDescription(await call('Describe', {}));
    setText(byId('refreshed'), `Updated ${clock}; refreshed every ${span(REFRESH_MILLISECONDS / 1000)}.`);
  } catch (error) {
    wait = Math.max(wait, (error.retrySeconds ?? 0) * 1000);
    const again = error.code === 'unauthenticated' ? '' : ` Trying again in ${span(wait / 1000)}.`;
    if (!again) wait = Infinity;
    setText(byId('refreshed'), `Not updated at ${clock}: ${error.message}${again}`);
  }
  refreshing = false;
  if (wait < Infinity) timer = setTimeout(refresh, wait);
}

document.addEventListener('visibilitychange', refresh);
refresh();
