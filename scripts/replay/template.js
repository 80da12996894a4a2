"use strict";
// Everything shown is a function of one time: show(t) draws the state at t seconds, whether it plays, steps or is
// scrubbed. Only the flight of a task from one place to the next is an animation of its own, and only while it plays.

const COLOURS = 8, HAND_OVER = 0.06, IDLE = 0.12, FLIGHT = 380, STEPS_WAIT = 900;
const still = matchMedia("(prefers-reduced-motion: reduce)");

function make(kind, name, parent, text) {
  const found = document.createElement(kind);
  found.className = name;
  if (text !== undefined) found.textContent = text;
  if (parent) parent.append(found);
  return found;
}
const colour = (task) => `c${(task - 1) % COLOURS}`;
const seconds = (t) => `${t.toFixed(1)} s`;

// One batch, with its rail and a lane for each worker.
class Run {
  constructor(element, run, horizon, step) {
    Object.assign(this, { element, horizon, seconds: run.seconds, tasks: run.tasks });
    this.workers = run.workers.map(([name, since, killed, returned]) => ({ name, since, killed, returned }));
    this.pieces = run.pieces.map(([task, worker, taken, start, end, done]) => ({ task, worker, taken, start, end, done }));
    this.tally = element.querySelector(".tally");
    this.lanes = element.querySelector(".lanes");
    this.lanes.style.setProperty("--grid-step", `${100 * step / horizon}%`);
    this.buildRail(element.querySelector(".slots"));
    this.rows = this.workers.map((worker, number) => this.buildRow(worker, number));
    this.now = make("div", "now", this.lanes);
  }

  buildRail(slots) {
    this.slots = new Map(this.tasks.map(([task, size]) => {
      const slot = make("span", "slot", slots);
      slot.style.setProperty("--size", size);
      return [task, make("span", `chip ${colour(task)}`, slot, task)];
    }));
  }

  buildRow(worker, number) {
    const row = make("div", "row", this.lanes);
    const who = make("div", "who", row);
    const name = make("b", "", who, worker.name);
    const lane = make("div", "lane", row);
    const pieces = this.pieces.filter((piece) => piece.worker === number);
    for (const piece of pieces) {
      piece.chip = make("span", `chip ${colour(piece.task)}`, who, piece.task);
      piece.bar = make("div", `bar ${colour(piece.task)}`, lane, piece.task);
      piece.bar.classList.toggle("again", this.lostBefore(piece));
    }
    const gone = make("div", "gone", lane, "killed");
    return { name, lane, gone, idles: this.idles(worker, pieces, lane) };
  }

  lostBefore(piece) {
    return this.pieces.some((other) => other.task === piece.task && !other.done && other.start < piece.start);
  }

  // The spans in which a worker has nothing to do, until all is done.
  idles(worker, pieces, lane) {
    const found = [];
    let since = worker.since;
    const add = (from, to) => {
      if (to - from > IDLE) found.push({ from, to, element: make("div", "idle", lane) });
    };
    for (const piece of pieces) {
      add(since, piece.start);
      since = piece.end;
    }
    if (worker.killed === null) add(since, this.seconds);
    for (const idle of found) idle.text = make("span", "", idle.element);
    return found;
  }

  // Where each task is: its element is the chip on the rail, the chip in a worker's hands, or the bar.
  places(t) {
    const found = new Map(this.slots);
    for (const piece of this.pieces) {
      const { returned } = this.workers[piece.worker];
      if (t <= piece.taken || (!piece.done && returned !== null && t >= returned)) continue;
      found.set(piece.task, t <= piece.start ? piece.chip : piece.bar);
    }
    return found;
  }

  show(t) {
    const places = this.places(t);
    for (const [task, chip] of this.slots) chip.hidden = places.get(task) !== chip;
    for (const piece of this.pieces) this.showPiece(piece, t);
    this.workers.forEach((worker, number) => this.showRow(worker, this.rows[number], t));
    this.now.style.left = `calc(var(--label) + (100% - var(--label)) * ${t / this.horizon})`;
    const done = this.pieces.filter((piece) => piece.done && piece.end <= t).length;
    this.tally.textContent = t >= this.seconds ? `done in ${seconds(this.seconds)}` : `${done} of ${this.tasks.length} done`;
    return places;
  }

  showPiece(piece, t) {
    piece.chip.hidden = t <= piece.taken || t > piece.start;
    piece.bar.hidden = t <= piece.start;
    this.place(piece.bar, piece.start, Math.min(t, piece.end));
    piece.bar.classList.toggle("lost", !piece.done && t >= piece.end);
  }

  showRow(worker, row, t) {
    row.lane.classList.toggle("away", t < worker.since);
    const gone = worker.killed !== null && t >= worker.killed;
    row.name.classList.toggle("off", gone || t < worker.since);
    row.gone.hidden = !gone;
    if (gone) this.place(row.gone, worker.killed, this.horizon);
    for (const idle of row.idles) {
      idle.element.hidden = t <= idle.from;
      this.place(idle.element, idle.from, Math.min(t, idle.to));
      const lasts = Math.min(t, idle.to) - idle.from;
      const text = `idle ${seconds(lasts)}`;
      const room = row.lane.clientWidth * lasts / this.horizon;
      idle.text.hidden = room < 8.5 * text.length;
      idle.text.textContent = text;
    }
  }

  place(element, from, to) {
    element.style.left = `${100 * from / this.horizon}%`;
    element.style.width = `${Math.max(0, 100 * (to - from) / this.horizon)}%`;
  }

  events() {
    const found = this.pieces.flatMap((piece) => [piece.taken, piece.start, piece.end]);
    return found.concat(this.workers.flatMap((worker) => [worker.since, worker.killed, worker.returned]).filter((at) => at !== null));
  }
}

// A scene: its runs on one clock, with controls.
class Scene {
  constructor(data) {
    const section = document.getElementById(data.key);
    Object.assign(this, data, { section, t: 0, speed: 1, playing: false, guess: null });
    this.card = section.querySelector(".card");
    for (const name of ["scrub", "caption", "clock", "play", "verdict"]) this[name] = section.querySelector(`.${name}`);
    this.answers = [...section.querySelectorAll(".answer")];
    this.runs = data.runs.map((run, number) =>
      new Run(section.querySelectorAll(".run")[number], run, data.seconds, data.step));
    this.events = grouped([0, ...this.runs.flatMap((run) => run.events()), ...this.moments.map(([at]) => at), this.seconds]);
    this.drawAxis(section.querySelector(".axis"));
    this.listen();
    this.show(0);
  }

  drawAxis(axis) {
    for (let number = 0; number * this.step <= this.seconds * 1.001; number++) {
      const tick = make("span", "", axis, number ? `${+(number * this.step).toFixed(3)}` : "0 s");
      tick.style.left = `${100 * number * this.step / this.seconds}%`;
    }
  }

  listen() {
    const on = (selector, kind, action) =>
      this.section.querySelectorAll(selector).forEach((each) => each.addEventListener(kind, (event) => action(event, each)));
    on(".play", "click", () => this.toggle());
    on(".step", "click", () => this.jump(1));
    on(".back", "click", () => this.jump(-1));
    on(".scrub", "input", () => this.seek(Number(this.scrub.value)));
    on(".speed input", "change", (_, radio) => { this.speed = Number(radio.value); this.restartClock(); });
    on(".ask", "click", (_, button) => this.ask(button));
    this.answers.forEach((button, number) => button.addEventListener("click", () => this.take(number)));
    for (const kind of ["pointerdown", "focusin"]) this.section.addEventListener(kind, () => { current = this; });
    for (const button of this.section.querySelectorAll(".ask")) {
      button.setAttribute("aria-expanded", "false");
      button.nextElementSibling.hidden = true;
    }
  }

  // The time

  toggle() {
    if (this.playing) this.pause();
    else this.start();
  }

  start() {
    if (playing && playing !== this) playing.pause();
    playing = current = this;
    if (this.t >= this.seconds) this.show(0);
    this.setPlaying(true);
    this.restartClock();
    if (still.matches) this.timer = setTimeout(() => this.stepOn(), STEPS_WAIT / this.speed);
    else this.frame = requestAnimationFrame((now) => this.tick(now));
  }

  pause() {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.setPlaying(false);
    if (playing === this) playing = null;
  }

  setPlaying(yes) {
    this.playing = yes;
    this.play.classList.toggle("playing", yes);
    this.play.querySelector(".word").textContent = yes ? "Pause" : this.t >= this.seconds ? "Again" : "Play";
  }

  restartClock() { this.base = null; }

  tick(now) {
    if (this.base === null) this.base = { now, t: this.t };
    this.go(this.base.t + (now - this.base.now) / 1000 * this.speed, true);
    if (this.t >= this.seconds) this.pause();
    else this.frame = requestAnimationFrame((later) => this.tick(later));
  }

  // With prefers-reduced-motion: from event to event.
  stepOn() {
    this.show(this.next(1));
    if (this.t >= this.seconds) this.pause();
    else this.timer = setTimeout(() => this.stepOn(), STEPS_WAIT / this.speed);
  }

  next(direction) {
    const found = direction > 0
      ? this.events.find((at) => at > this.t + 1e-6)
      : this.events.filter((at) => at < this.t - 1e-6).pop();
    return found ?? (direction > 0 ? this.seconds : 0);
  }

  jump(direction) {
    this.pause();
    this.go(this.next(direction), direction > 0 && !still.matches);
    this.setPlaying(false);
  }

  seek(t) {
    const goesOn = this.playing;
    if (goesOn) this.pause();
    this.show(Math.min(Math.max(t, 0), this.seconds));
    this.setPlaying(false);
    if (goesOn && this.t < this.seconds) this.start();
  }

  // On to t; tasks that have changed their place fly there.
  go(t, withFlights) {
    const before = withFlights ? this.runs.map((run) => run.places(this.t)) : null;
    const from = before && before.map((places) => new Map([...places].map(([task, element]) => [task, element.getBoundingClientRect()])));
    this.show(Math.min(t, this.seconds));
    if (!before) return;
    this.runs.forEach((run, number) => {
      for (const [task, element] of run.places(this.t)) {
        if (before[number].get(task) !== element) this.fly(task, from[number].get(task), element);
      }
    });
  }

  fly(task, from, element) {
    const origin = this.card.getBoundingClientRect(), to = element.getBoundingClientRect();
    const flight = make("span", `chip flight ${colour(task)}`, this.card, task);
    flight.setAttribute("aria-hidden", "true");
    const at = (place) => `translate(${place.left - origin.left}px, ${place.top - origin.top + (place.height - flight.offsetHeight) / 2}px)`;
    flight.style.left = flight.style.top = "0";
    const animation = flight.animate([{ transform: at(from) }, { transform: at(to) }],
      { duration: FLIGHT / Math.max(1, this.speed), easing: "cubic-bezier(.3,.7,.3,1)" });
    if (element.classList.contains("chip")) element.style.visibility = "hidden";
    animation.onfinish = animation.oncancel = () => {
      flight.remove();
      element.style.visibility = "";
    };
  }

  // The state

  show(t) {
    this.t = t;
    for (const run of this.runs) run.show(t);
    const firsts = this.runs.filter((run) => run.seconds === Math.min(...this.runs.map((each) => each.seconds)));
    for (const run of this.runs) run.tally.classList.toggle("first", t >= run.seconds && firsts.includes(run));
    this.scrub.value = t;
    this.scrub.style.setProperty("--played", `${100 * t / this.seconds}%`);
    const clock = seconds(t);
    if (this.clock.textContent !== clock) {
      this.clock.textContent = clock;
      this.scrub.setAttribute("aria-valuetext", `${t.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
    }
    this.say(this.moments.filter(([at]) => at <= t + 1e-3).pop());
    if (t >= this.seconds) this.judge();
  }

  say(moment) {
    if (this.said === moment) return;
    this.said = moment;
    this.caption.replaceChildren();
    make("b", "", this.caption, seconds(moment[0]));
    this.caption.append(moment[1]);
  }

  // Guesses and questions

  take(number) {
    this.guess = number;
    this.verdict.textContent = "";
    this.answers.forEach((button, each) => {
      button.setAttribute("aria-pressed", String(each === number));
      button.classList.remove("right", "wrong");
    });
    this.pause();
    this.show(0);
    this.card.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
    this.start();
  }

  judge() {
    if (this.guess === null || this.verdict.textContent) return;
    const right = this.guess === this.right;
    this.answers[this.guess].classList.add(right ? "right" : "wrong");
    this.answers[this.right].classList.add("right");
    this.verdict.classList.toggle("missed", !right);
    make("b", "", this.verdict, right ? "You were right. " : "Not so. ");
    this.verdict.append(this.because);
    this.verdict.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
  }

  ask(button) {
    const opens = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(opens));
    button.nextElementSibling.hidden = !opens;
    if (!opens) return;
    this.pause();
    this.seek(Number(button.dataset.at) + 0.001);
    this.card.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
  }
}

// Times that follow each other at once are one event: a task that ends, and the next that is handed out for it.
function grouped(times) {
  const found = [];
  let first = -1;
  for (const at of [...new Set(times)].sort((a, b) => a - b)) {
    if (found.length && at - first < HAND_OVER) found[found.length - 1] = at;
    else {
      first = at;
      found.push(at);
    }
  }
  return found;
}

let playing = null, current = null;
document.documentElement.classList.add("scripted");
const all = JSON.parse(document.getElementById("data").textContent).map((data) => new Scene(data));
current = all[0];
addEventListener("resize", () => all.forEach((scene) => scene.show(scene.t)));
still.addEventListener("change", () => playing && playing.pause());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = event.target instanceof Element ? event.target : document.body;
  if (event.key === " " && !at.closest("button, summary, a, [type=radio]")) current.toggle();
  else if ((event.key === "ArrowRight" || event.key === "ArrowLeft") && !at.closest("[type=radio]")) {
    const forward = event.key === "ArrowRight" ? 1 : -1;
    if (event.shiftKey) current.seek(current.t + forward / 10);
    else current.jump(forward);
  } else return;
  event.preventDefault();
});
