// Draws each state that /events sends, and says so when none comes. All text is set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = { working: "good", waiting: "idle", quiet: "busy", silent: "bad", reconnecting: "busy", stopping: "busy" };
const HAPPENED = {
  task_completed: ["✔ done", "good"], task_retried: ["↻ failed", "busy"], task_dead: ["✖ dead", "bad"],
  task_lost_connection: ["⌁ lost the connection", "busy"], worker_ready: ["→ ready", "idle"], worker_stopped: ["← stopped", "idle"],
};
const QUIET = 4000; // milliseconds without a word, after which the page says so
const SILENCE = 12000; // and after which the connection is made anew

const number = (value, digits = 0) =>
  value === null ? "?" : value.toLocaleString("en", { maximumFractionDigits: digits });
const of = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const clock = (date, zone) =>
  date.toLocaleTimeString("en-GB", zone ? { timeZoneName: "short" } : {});

// Elements

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// As many children as there are items; what is there is used again, so that nothing flickers.
function list(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, at) => fill(parent.children[at], item));
}

// The parts of the page

function drawHead(state) {
  const source = state.source;
  document.title = `${number(state.queues.ready)} ready · ${source.queue}`;
  put($("queue"), source.queue);
  put($("where"), [source.where, source.broker, source.note].filter(Boolean).join(" · "));
  const replay = source.kind === "replay";
  $("live").dataset.level = replay ? "unknown" : source.connected ? "good" : "bad";
  put($("live"), replay ? "▶ replay" : source.connected ? "● live" : "○ not connected");
  put($("since"), `since ${clock(new Date(source.since * 1000), true)}, ${duration(source.watched_seconds)}`);
}

function drawVerdict(state) {
  const { level, text, notes } = state.verdict;
  $("verdict").dataset.level = level;
  put($("sentence"), text);
  const parts = [];
  if (state.rate) parts.push(`${number(state.rate[0], 1)} tasks done a second over ${state.rate[1].toFixed(0)} s`);
  if (state.waited) {
    const ago = state.waited[1] < 2 ? "" : ` (${duration(state.waited[1])} ago)`;
    parts.push(`the last started task had waited ${duration(state.waited[0])}${ago}`);
  }
  put($("wait"), parts.join("; "));
  const scaled = state.autoscale;
  $("autoscale").hidden = !scaled;
  if (scaled) {
    const range = `${of(scaled.workers, "worker")} of ${scaled.least} to ${scaled.most}`;
    put($("autoscale"), `⇅ ${range} since ${duration(scaled.ago)}: ${scaled.why}`);
  }
  list($("notes"), notes, () => element("li"), (node, note) => put(node, note));
}

function drawFigures(state) {
  const { queues, workers, watched } = state;
  const retrying = queues.known ? queues.retry.reduce((sum, [, count]) => sum + count, 0) : null;
  const figures = [
    ["ready", queues.ready, queues.ready && "busy"],
    [workers.held ? `in work, ${number(workers.held)} more held` : "in work", workers.running, workers.running && "good"],
    ["consumers", queues.consumers, queues.consumers === 0 && "bad"],
    ["waiting for a retry", retrying, retrying && "busy"],
    ["dead letters", queues.known ? queues.dead : null, queues.dead && "bad"],
    ["done while watched", watched.completed],
  ];
  const make = () => {
    const made = element("div");
    made.append(element("b"), element("span"));
    return made;
  };
  list($("figures"), figures, make, (node, [name, value, level]) => {
    put(node.firstChild, number(value ?? null));
    put(node.lastChild, name);
    if (level) node.firstChild.dataset.level = level;
    else delete node.firstChild.dataset.level;
  });
}

function drawChart(id, values, most) {
  const known = values.filter((value) => value !== null);
  const top = Math.max(...known, 0);
  put($(most), known.length ? number(top, 1) : "–");
  const parts = [];
  let run = [];
  const place = (value, at) => [120 - (values.length - 1 - at), 38 - (36 * value) / (top || 1)];
  values.forEach((value, at) => {
    if (value !== null) run.push(place(value, at));
    if ((value === null || at === values.length - 1) && run.length) {
      parts.push(run);
      run = [];
    }
  });
  const line = parts.map((points) => "M" + points.map((point) => point.join(" ")).join("L")).join("");
  const area = parts.map((p) => `M${p[0][0]} 38L${p.map((point) => point.join(" ")).join("L")}L${p.at(-1)[0]} 38Z`).join("");
  list($(id), [["base", "M0 38H120"], ["area", area], ["line", line]],
    () => document.createElementNS("http://www.w3.org/2000/svg", "path"),
    (node, [name, path]) => {
      node.setAttribute("class", name);
      node.setAttribute("d", path);
    });
}

function makeWorker() {
  const made = element("li");
  const top = element("div", "top");
  top.append(element("span", "name"), element("span", "pill"), element("span", "counts"));
  made.append(top, element("div"));
  return made;
}

function makeTask() {
  const made = element("div");
  const track = element("div", "track");
  track.append(element("i"));
  const doing = element("div", "doing");
  doing.append(element("span"), element("span"));
  made.append(track, doing);
  return made;
}

function fillWorker(node, row, long) {
  const [top, tasks] = node.children;
  const [name, pill, counts] = top.children;
  node.classList.toggle("silent", row.state === "silent");
  put(name, row.worker);
  pill.dataset.level = STATES[row.state] || "unknown";
  put(pill, row.state === "silent" || row.state === "quiet" ? `${row.state} for ${duration(row.quiet)}` : row.state);
  const failed = [row.retried && `${number(row.retried)} failed`, row.dead && `${number(row.dead)} dead`];
  const held = row.held && `holds ${number(row.held)} more`;
  put(counts, [`${number(row.completed)} done`, ...failed, held].filter(Boolean).join(" · "));
  const running = row.state === "stopped" ? [] : row.running;
  list(tasks, running.length ? running : [null], makeTask, (part, task) => fillTask(part, task, long));
  if (row.more) tasks.lastChild.lastChild.firstChild.textContent += ` +${number(row.more)} more`;
}

function fillTask(node, task, long) {
  const [track, doing] = node.children;
  const [what, since] = doing.children;
  const measured = Boolean(task && task.total);
  track.classList.toggle("unmeasured", Boolean(task) && !measured);
  track.firstChild.style.width = measured ? `${100 * Math.min(1, (task.done || 0) / task.total)}%` : task ? "" : "0";
  since.classList.toggle("long", Boolean(task) && task.age > long);
  if (!task) {
    put(what, "–");
    put(since, "");
    return;
  }
  const stars = Number.isInteger(task.difficulty) && task.difficulty <= 5 ? " " + "★".repeat(task.difficulty) : "";
  put(what, `${task.task} (id ${task.id}${task.attempt > 1 ? `, attempt ${task.attempt}` : ""})${stars}`);
  const parts = measured ? `${number(task.done || 0, 1)}/${number(task.total, 1)} · ` : "";
  put(since, parts + duration(task.age));
}

function drawWorkers(state) {
  const workers = state.workers;
  put($("workers-title"), `Workers: ${number(workers.known)}`);
  $("workers").dataset.empty = state.source.connected
    ? "No worker is known: start it with python worker.py --events" : "Nothing is known of workers";
  list($("workers"), workers.rows, makeWorker, (node, row) => fillWorker(node, row, workers.long));
  put($("more"), workers.more ? `… and ${number(workers.more)} more` : "");
}

function makeEvent() {
  const made = element("li");
  const what = element("div");
  what.append(element("b"), element("span"), element("br"), element("small"));
  made.append(element("time"), what);
  return made;
}

function fillEvent(node, event) {
  const [time, what] = node.children;
  const [word, task, , small] = what.children;
  const date = new Date(event.time);
  put(time, isNaN(date) ? "?" : clock(date));
  const [text, level] = HAPPENED[event.event];
  put(word, text);
  word.dataset.level = level;
  const how = event.event === "task_completed" && event.seconds !== null ? ` in ${duration(event.seconds)}` : "";
  put(task, event.event.startsWith("task_") ? ` ${event.task || "a message that is no task"} (id ${event.id})${how}` : "");
  const again = event.event === "task_retried" && event.delay_seconds !== null ? `again in ${number(event.delay_seconds, 3)} s` : "";
  put(small, [event.worker, event.error, again].filter(Boolean).join(" · "));
}

function draw(state) {
  drawHead(state);
  drawVerdict(state);
  drawFigures(state);
  drawChart("chart-ready", state.history.ready, "most-ready");
  drawChart("chart-done", state.history.done, "most-done");
  drawWorkers(state);
  drawDead(state);
  $("recent").dataset.empty = "Nothing yet";
  list($("recent"), state.recent, makeEvent, fillEvent);
}

function drawDead(state) {
  const { queues, source } = state;
  $("dead").hidden = !queues.dead;
  if (!queues.dead) return;
  put($("dead-count"), `${of(queues.dead, "dead letter")} in ${source.dead_queue}: `);
  put($("dead-command"), source.dead_command);
}

// The connection to watch.py

let heard = Date.now();

function listen() {
  const events = new EventSource("/events");
  heard = Date.now();
  events.onmessage = (message) => {
    heard = Date.now();
    $("away").hidden = true;
    document.body.classList.remove("stale");
    draw(JSON.parse(message.data));
  };
  const watchdog = setInterval(() => {
    const closed = events.readyState === EventSource.CLOSED; // refused: the browser does not try again by itself
    if (Date.now() - heard > QUIET) away();
    if (!closed && Date.now() - heard < SILENCE) return;
    clearInterval(watchdog);
    events.close();
    setTimeout(listen, 1000);
  }, 1000);
  events.onerror = away;
}

function away() {
  $("away").hidden = false;
  document.body.classList.add("stale");
  put($("away"), "watch.py does not answer: what you see is old. Trying again …");
}

listen();
