// Places for streams, of which all pages of a server that a browser has open share a few.

/**
 * The most streams at a time. A browser opens six connections to a server over HTTP/1.1, for all its
 * tabs; the rest of the pages needs two, or they could not even see that the server is well.
 */
export const MOST_STREAMS = 4;

/**
 * Waits until one of the places is free.
 * @param {AbortSignal} signal
 * @returns {Promise<function(): void>} what gives it back
 */
export async function sharedPlace(signal) {
  signal.throwIfAborted();
  if (!navigator.locks) return () => {}; // a page that is not secure knows nothing of other tabs
  const found = new AbortController();
  const giveUp = () => found.abort();
  signal.addEventListener("abort", giveUp);
  try {
    return await Promise.any(Array.from({ length: MOST_STREAMS }, (_, i) => lock(i, found)));
  } catch {
    signal.throwIfAborted();
    return () => {}; // the browser lets this page have no locks
  } finally {
    signal.removeEventListener("abort", giveUp);
  }
}

/** Takes a place, unless another one was found first. */
function lock(i, found) {
  return new Promise((resolve, reject) => {
    const taken = () =>
      new Promise((free) => {
        if (found.signal.aborted) free();
        resolve(free);
        found.abort();
      });
    navigator.locks.request(`atmosphere-stream-${i}`, { signal: found.signal }, taken).catch(reject);
  });
}
