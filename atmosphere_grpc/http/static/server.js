// How the server and its integrations are doing, looked at again and again.

import { CallError, ask } from "/static/api.js";

/** Between two looks, in milliseconds; a server probes its integrations every 5 s by itself. */
const EVERY = 3000;
/** The same for a caller whose calls are limited: looking must not use up what it may do. */
const EVERY_LIMITED = 30_000;
/** Between two looks at the models, which their backends are asked for. */
const MODELS_EVERY = 30_000;
/** Between two looks at a server that is gone: at first, then doubled, at most. */
const GONE_FIRST = 1000;
const GONE_MOST = 10_000;
/** How long an answer may take before the server counts as gone. */
const PATIENCE_S = 10;

/**
 * What is known of the server. It tells of news by events: `integrations`, `models`, `lost` (when
 * the next look is, as `nextAt`), `failed`.
 */
export class Server extends EventTarget {
  constructor() {
    super();
    this.integrations = [];
    this.models = [];
    this.reachable = null;
    this.failure = null;
    this.nextAt = 0;
    this._every = EVERY;
    this._modelsAt = -Infinity;
    this._misses = 0;
    this._looking = false;
    document.addEventListener("visibilitychange", () => (document.hidden ? this._rest() : this.look()));
  }

  /** Looks now, and then every few seconds while the page can be seen. */
  async look() {
    if (this._looking) {
      this._anew = true; // what is asked now may be answered as of before
      return;
    }
    this._rest();
    this._looking = true;
    let waitMs = 0;
    try {
      const before = this._connected();
      const { integrations } = await this._ask("/v1/integrations");
      this.integrations = integrations;
      this._misses = 0;
      this.reachable = true;
      this.failure = null;
      this._tell("integrations");
      const come = this._connected().some((id) => !before.includes(id));
      waitMs = this._every;
      if (come || performance.now() - this._modelsAt > MODELS_EVERY) await this._lookAtModels();
    } catch (error) {
      waitMs = this._missed(error);
    } finally {
      this._looking = false;
    }
    if (this._anew) {
      this._anew = false;
      this.look();
    } else if (!document.hidden) {
      this._timer = setTimeout(() => this.look(), waitMs);
    }
  }

  /** Looks at once, and has the wait after the next miss begin anew. */
  lookAnew() {
    this._misses = 0;
    this._every = EVERY;
    this.modelsMayHaveChanged();
    this.look();
  }

  /** Has the models looked at with the next look: one may have been loaded meanwhile. */
  modelsMayHaveChanged() {
    this._modelsAt = -Infinity;
  }

  async _lookAtModels() {
    const models = [];
    let token = "";
    try {
      do {
        const query = new URLSearchParams({ page_size: "1000", page_token: token });
        const page = await this._ask(`/v1/models?${query}`, true);
        models.push(...page.models);
        token = page.next_page_token;
      } while (token);
      this.models = models;
    } catch (error) {
      // A key may be good for the integrations and not for this: then the default model is left.
      if (!(error instanceof CallError) || error.reason === "UNREACHABLE") throw error;
    }
    this._modelsAt = performance.now();
    this._tell("models");
  }

  _ask(path, quiet = false) {
    const signal = AbortSignal.timeout(PATIENCE_S * 1000);
    return ask(path, { signal, asked: false, quiet });
  }

  _missed(error) {
    const failure = error instanceof CallError ? error : new CallError(String(error?.message ?? error));
    const gone = failure.reason === "UNREACHABLE" || !failure.reason;
    this.reachable = !gone;
    this.failure = failure;
    this._misses += 1;
    if (failure.reason === "RATE_LIMITED") this._every = EVERY_LIMITED;
    const waitMs = Math.min(GONE_FIRST * 2 ** (this._misses - 1), GONE_MOST);
    const after = failure.retryMs === null ? waitMs : Math.max(waitMs, failure.retryMs);
    this.nextAt = performance.now() + after;
    this._tell(gone ? "lost" : "failed");
    return after;
  }

  _connected() {
    return this.integrations.filter((item) => item.state === "INTEGRATION_STATE_UP").map(({ id }) => id);
  }

  _rest() {
    clearTimeout(this._timer);
  }

  _tell(what) {
    this.dispatchEvent(new Event(what));
  }
}
