// Which answers are on the page and which of them run: one an integration, side by side.

import { Answer } from "/static/answer.js";
import { by, show } from "/static/dom.js";
import { MOST_STREAMS, sharedPlace } from "/static/places.js";

/** The answers of the page; tells of a change by the event `change`. */
export class Runs extends EventTarget {
  constructor() {
    super();
    this._answers = new Map();
    this._waiting = [];
    this._streams = 0;
    this._place = by("results");
  }

  isRunning(integration) {
    return Boolean(this._answers.get(integration)?.running);
  }

  get anyRunning() {
    return [...this._answers.values()].some((answer) => answer.running);
  }

  /** Runs a prompt on an integration; its answer takes the place of the one before. */
  start(wanted) {
    const before = this._answers.get(wanted.integration);
    before?.stop();
    const answer = new Answer(wanted, {
      again: (same) => this.start(same).node.querySelector(".stop").focus(),
      removed: (gone) => this._remove(gone),
    });
    this._answers.set(wanted.integration, answer);
    if (before) before.node.replaceWith(answer.node);
    else this._place.append(answer.node);
    show(this._place, true);
    this._run(answer);
    this._changed();
    return answer;
  }

  stop(integration) {
    this._answers.get(integration)?.stop();
  }

  stopAll() {
    for (const answer of this._answers.values()) answer.stop();
  }

  async _run(answer) {
    let leave = null;
    await answer.run(async (signal) => {
      leave = await this._turn(signal);
    });
    leave?.();
    this._changed();
  }

  /** Resolves when a stream may begin, to what gives its place back. */
  async _turn(signal) {
    await this._queue(signal);
    try {
      const free = await sharedPlace(signal);
      return () => {
        free();
        this._leave();
      };
    } catch (error) {
      this._leave();
      throw error;
    }
  }

  _queue(signal) {
    if (this._streams < MOST_STREAMS) {
      this._streams += 1;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const place = { resolve };
      this._waiting.push(place);
      signal.addEventListener("abort", () => {
        const i = this._waiting.indexOf(place);
        if (i >= 0) this._waiting.splice(i, 1);
        reject(signal.reason);
      });
    });
  }

  /** The place of a stream that has ended goes to whoever waits longest. */
  _leave() {
    const next = this._waiting.shift();
    if (next) next.resolve();
    else this._streams -= 1;
  }

  _remove(answer) {
    this._answers.delete(answer.wanted.integration);
    answer.node.remove();
    show(this._place, this._answers.size > 0);
    by("prompt").focus();
    this._changed();
  }

  _changed() {
    this.dispatchEvent(new Event("change"));
  }
}
