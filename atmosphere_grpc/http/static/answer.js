// One answer on the page: it shows a run from its request to its figures, and can stop it.

import { CallError, isStop } from "/static/api.js";
import { chat } from "/static/chat.js";
import { copy, el, facts, first, say, show } from "/static/dom.js";
import { attemptsTable, attemptsTitle, failureParts, requestLine } from "/static/told.js";
import { ending, time, usageFacts } from "/static/words.js";

/** How close to its end a text must be scrolled to go on following what comes, in pixels. */
const NEAR_END = 24;

/** An answer, and the run that brings it. */
export class Answer {
  /**
   * @param {object} wanted what is asked, as `chat` takes it
   * @param {object} acts `again(wanted)` and `removed(answer)`, for the buttons
   */
  constructor(wanted, acts) {
    this.wanted = wanted;
    this.running = false;
    this.node = copy("answer");
    this._abort = new AbortController();
    this._part = (name) => this.node.querySelector(name);
    this._content = this._part(".content");
    this._text = this._content.appendChild(document.createTextNode(""));
    this._thought = this._part(".reasoning .text").appendChild(document.createTextNode(""));
    this._part(".reasoning").addEventListener("toggle", () => {
      if (this.running) toEnd(this._thought.parentElement);
    });
    this._figures = { model: "", usage: null, finish: "", facts: {}, firstMs: 0 };

    const name = wanted.integration;
    say(this._part("h3"), name);
    say(this._part(".asked"), wanted.model || "default model");
    this.node.setAttribute("aria-label", `Answer of ${name}`);
    this._content.setAttribute("aria-label", `Text of ${name}`);
    this._part(".stop").setAttribute("aria-label", `Stop ${name}`);
    this._part(".again").setAttribute("aria-label", `Run again on ${name}`);
    this._part(".remove").setAttribute("aria-label", `Remove the answer of ${name}`);
    this._part(".stop").addEventListener("click", (event) => first(event) && this.stop());
    this._part(".again").addEventListener("click", () => acts.again(wanted));
    this._part(".remove").addEventListener("click", () => acts.removed(this));
  }

  /** Stops it, also while it waits; what came stays. */
  stop() {
    this._abort.abort();
  }

  /**
   * Runs it to its end, however that comes.
   * @param {function(AbortSignal): Promise<void>} turn resolves when it may begin
   */
  async run(turn) {
    this.running = true;
    this._content.setAttribute("aria-busy", "true");
    this._state("busy", "Waits for its turn");
    try {
      await turn(this._abort.signal);
      this._begin();
      for await (const item of chat(this.wanted, this._abort.signal)) this._take(item);
      const { finish } = this._figures;
      const whole = finish === "stop" && this._text.length > 0;
      const empty = this._text.length ? "" : ", and has no text";
      show(this._content, this._text.length > 0);
      this._state(whole ? "good" : "partial", `Done: the answer is ${ending(finish)}${empty}`);
    } catch (error) {
      this._failed(error);
    } finally {
      this.running = false;
      this._end();
    }
  }

  _begin() {
    this._startedAt = performance.now();
    this._state("busy", "Waiting for the first token");
    const tick = () => say(this._part(".elapsed"), time(this._took()));
    this._ticking = setInterval(tick, 100);
  }

  _take(item) {
    const figures = this._figures;
    if (item.begun) this._requestId = item.begun;
    if (item.model) figures.model = item.model;
    if (item.usage) figures.usage = item.usage;
    if (item.finish) Object.assign(figures, { finish: item.finish, facts: item.facts });
    if (item.text || item.reasoning) {
      figures.firstMs ||= this._took();
      this._state("busy", item.text ? "Answering" : "Reasoning");
    }
    if (item.reasoning) {
      show(this._part(".reasoning"), true);
      append(this._thought, item.reasoning);
    }
    if (item.text) append(this._text, item.text);
  }

  _failed(error) {
    const some = this._text.length || this._thought.length;
    show(this._content, this._text.length > 0);
    if (isStop(error)) {
      this._state("unknown", some ? "Stopped: the answer is not complete" : "Stopped");
      return;
    }
    this._state("bad", some ? "Failed: the answer is not complete" : "Failed");
    const known = error instanceof CallError ? error : new CallError(`a fault of this page: ${error}`);
    const box = this._part(".failure");
    box.replaceChildren(...failureParts(known));
    show(box, true);
    this._requestTold = Boolean(known.requestId);
  }

  _end() {
    clearInterval(this._ticking);
    show(this._part(".elapsed"), false);
    this._content.setAttribute("aria-busy", "false");
    const { activeElement } = document;
    const stop = this._part(".stop");
    show(this._part(".again"), true);
    show(this._part(".remove"), true);
    // A button that goes must not take the keyboard's place in the page with it.
    if (activeElement === stop) this._part(".again").focus();
    show(stop, false);
    if (this._startedAt !== undefined) this._tellFigures();
    if (this._requestId && !this._requestTold) {
      const line = this._part(".request");
      line.replaceChildren(...requestLine(this._requestId).childNodes);
      show(line, true);
    }
  }

  /** By the server's clock where it says; by this page's for what did not come to its end. */
  _tellFigures() {
    const { model, usage, finish, facts: known, firstMs } = this._figures;
    const latency = known.latency_ms || this._took();
    const begun = known.time_to_first_token_ms || firstMs;
    const cost = usage && { ...usage, source: known.usage_source };
    const list = this._part(".figures");
    facts(list, [
      ["Latency", time(latency)],
      ["First token", begun ? time(begun) : ""],
      ["Model used", model],
      ["Finish", finish ? ending(finish) : ""],
      ...(finish ? usageFacts(cost, latency, begun) : []),
    ]);
    show(list, true);
    const attempts = known.attempts ?? [];
    if (!attempts.length) return;
    const box = this._part(".attempts");
    say(box.querySelector("summary"), attemptsTitle(attempts));
    box.append(el("div", {}, attemptsTable(attempts)));
    show(box, true);
  }

  _took() {
    return performance.now() - this._startedAt;
  }

  _state(colour, word) {
    const line = this._part(".state");
    line.dataset.state = colour;
    say(line.querySelector(".word"), word);
  }
}

/** Lengthens a text in its box, which goes on showing the end where it did. */
function append(text, more) {
  const box = text.parentElement;
  const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END;
  text.appendData(more);
  if (follows) toEnd(box);
}

function toEnd(box) {
  box.scrollTop = box.scrollHeight;
}
