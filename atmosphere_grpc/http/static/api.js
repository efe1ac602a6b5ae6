// Calls the server that this page came from, and says in plain words what goes wrong.

let key = "";
/** Told of calls that are refused for who makes them. */
const listeners = new Set();

/** Sets the key of all further calls; it is kept here and nowhere else. */
export function useKey(value) {
  key = value.trim();
}

export const hasKey = () => key !== "";

/** Has `callback(failure, asked)` told of each such call. */
export function onDenied(callback) {
  listeners.add(callback);
}

/** What went wrong with a call. */
export class CallError extends Error {
  /**
   * @param {string} message what happened and what to do, for people
   * @param {object} known `reason`, `status`, `requestId`, `retryMs` and `attempts`, where known
   */
  constructor(message, known = {}) {
    super(message);
    Object.assign(this, { reason: "", status: 0, requestId: "", retryMs: null, ...known });
  }

  /** Whether it is for who calls: another key may do. */
  get denied() {
    return this.status === 401 || this.reason === "PERMISSION_DENIED";
  }
}

/** Whether a failure is that its caller gave up, which is none. */
export const isStop = (error) => error?.name === "AbortError";

export function lost(requestId = "") {
  const message = "the connection to the server broke off – is it still running?";
  return new CallError(message, { reason: "UNREACHABLE", requestId });
}

/**
 * Sends a call; the answer's body is still to come.
 * @param {object} options `body` (an object, which makes it a POST), `signal`, `timeoutS`, `asked`
 *   (whether the person at this page asked for it) and `quiet` (whether the page can do without)
 */
export async function send(path, { body, signal, timeoutS, asked = true, quiet = false } = {}) {
  if (!/^[\x21-\x7e]*$/.test(key)) {
    throw new CallError("the API key has characters that no key has", { reason: "BAD_KEY" });
  }
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  if (timeoutS) headers["X-Request-Timeout"] = String(timeoutS);
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    throw isStop(error) ? error : lost();
  }
  if (response.ok) return response;
  const failure = await failureOf(response);
  if (failure.denied && !quiet) {
    for (const tell of listeners) tell(failure, asked);
  }
  throw failure;
}

/** Sends a call and reads its whole answer. */
export async function ask(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (isStop(error)) throw error;
    throw lost(response.headers.get("x-request-id") ?? "");
  }
}

async function failureOf(response) {
  const requestId = response.headers.get("x-request-id") ?? "";
  let document = {};
  try {
    document = await response.json();
  } catch {
    // Something between this page and the server answered: a proxy speaks HTML.
  }
  const failure = told(document, requestId);
  failure.status = response.status;
  const afterMs = response.headers.get("retry-after-ms");
  const afterS = response.headers.get("retry-after");
  const retryMs = afterMs !== null ? Number(afterMs) : afterS !== null ? Number(afterS) * 1000 : NaN;
  if (Number.isFinite(retryMs)) failure.retryMs = retryMs; // a proxy may say a date
  failure.message ||= `the server answered with HTTP ${response.status}, and nothing that says why`;
  return failure;
}

/** A failure as the API tells it, in its own shape or in OpenAI's. */
export function told(document, requestId = "") {
  const error = document?.error;
  const openai = typeof error === "object" && error !== null;
  const said = openai ? error : (document ?? {});
  return new CallError(String((openai ? error.message : error) ?? ""), {
    reason: String(said.reason ?? ""),
    requestId: String(said.request_id || requestId),
    attempts: said.metadata?.attempts ?? "",
  });
}
