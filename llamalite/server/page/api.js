// The server that served this page, as functions: the models it has, and an answer as it is generated.
// Every failure is a ServerError that says what happened and what the user can do. Nothing here knows the page.

export class ServerError extends Error {
  /** `kind`: "gone", "key", "busy" (then `retry_s`), "overflow" or "other"; `advice`: what the user can do. */
  constructor(kind, message, advice = "", retry_s = 0) {
    super(message);
    Object.assign(this, { kind, advice, retry_s });
  }
}

const GONE = ["The server does not answer.", "Start it again with “llamalite serve”, then try again."];
const CUT = ["The connection ended before the answer did.", "What came is kept."];

/** Return the server's models: [{id, ...}]. */
export async function models(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  return (await response.json()).data;
}

/**
 * Yield an answer as it is generated: {text} for each piece, {finish_reason}, and {usage, timings} at its end.
 * `request` is the body of POST /v1/chat/completions; aborting `signal` stops the generation.
 */
export async function* chat(request, key, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await ask("v1/chat/completions", { method: "POST", headers: headers(key), body, signal });
  let done = false;
  for await (const text of events(response.body, signal)) {
    if (text === "[DONE]") {
      done = true;
      break;
    }
    const chunk = JSON.parse(text);
    if (chunk.error) throw new ServerError(...kindOf(0, chunk.error));
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish_reason: choice.finish_reason };
    if (chunk.usage || chunk.timings) yield { usage: chunk.usage, timings: chunk.timings };
  }
  if (!done) throw new ServerError("gone", ...CUT);
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

// Relative to the page: behind a reverse proxy it may stand below any path.
async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("gone", ...GONE);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({})); // a proxy's error may be HTML
  const error = answer.error ?? { message: `The server answered ${response.status} ${response.statusText}.` };
  throw new ServerError(...kindOf(response.status, error, response.headers.get("Retry-After")));
}

function kindOf(status, { message, code }, retryAfter) {
  if (status === 401) return ["key", message, "Enter the key that the server was started with."];
  if (code === "context_length_exceeded") {
    return ["overflow", message, "Start a new conversation, or edit an earlier message to go on from there."];
  }
  if ((status === 503 || status === 429) && retryAfter !== null) return ["busy", message, "Try again later.", Number(retryAfter) || 1];
  return ["other", message, ""];
}

/** Yield the data of each server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trimStart(); // JSON is one line
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ServerError("gone", ...CUT);
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}
