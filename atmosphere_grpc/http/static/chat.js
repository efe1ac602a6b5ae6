// One streamed chat: what is asked, and what comes back, as events with names.

import { CallError, lost, send, told } from "/static/api.js";
import { events } from "/static/sse.js";

/**
 * Asks one integration, and tells what comes.
 *
 * Leaving the loop, or aborting, closes the connection, which stops the model.
 * @param {object} wanted `integration`, `model` (empty: its default), `prompt`, `options`
 * @param {AbortSignal} signal
 * @yields `{begun}` with the request's id, `{model}`, `{text}`, `{reasoning}`, `{usage}`,
 *   `{finish, facts}`
 * @throws {CallError} also when the stream ends before the answer is whole
 */
export async function* chat(wanted, signal) {
  const { timeoutS, ...sampling } = wanted.options;
  const body = {
    messages: [{ role: "user", content: wanted.prompt }],
    integration_id: wanted.integration,
    stream: true,
    stream_options: { include_usage: true },
    ...sampling,
  };
  if (wanted.model) body.model = wanted.model;
  const response = await send("/v1/chat/completions", { body, signal, timeoutS });
  const requestId = response.headers.get("x-request-id") ?? "";
  yield { begun: requestId };
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        if (!finished) throw unreadable(requestId);
        return;
      }
      for (const item of meaning(parsed(data, requestId), requestId)) {
        finished ||= "finish" in item;
        yield item;
      }
    }
  } catch (error) {
    // The browser's own words for a connection that broke off name no cause.
    throw error instanceof TypeError ? lost(requestId) : error;
  }
  throw lost(requestId);
}

function* meaning(chunk, requestId) {
  if (chunk.error) throw told(chunk, requestId);
  if (chunk.model) yield { model: String(chunk.model) };
  for (const choice of chunk.choices ?? []) {
    const { reasoning_content: reasoning, content, tool_calls: calls } = choice.delta ?? {};
    if (reasoning) yield { reasoning };
    if (content) yield { text: content };
    // No tool is offered, yet a model may ask for one: better shown raw than an empty answer.
    for (const { function: called } of calls ?? []) {
      yield { text: (called?.name ? `${called.name} ` : "") + (called?.arguments ?? "") };
    }
    if (choice.finish_reason) yield { finish: choice.finish_reason, facts: chunk.atmosphere ?? {} };
  }
  if (chunk.usage) yield { usage: chunk.usage };
}

function parsed(data, requestId) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw unreadable(requestId);
  }
}

function unreadable(requestId) {
  const message = "what came is no answer of this server – is there a proxy between that changes it?";
  return new CallError(message, { reason: "UNREADABLE", requestId });
}
