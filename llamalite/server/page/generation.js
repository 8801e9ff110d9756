// One answer as it grows: the request, what comes back, its speed, and how it ends. It writes into its message and knows
// nothing of the page, which looks at the message when it likes.

import { chat, ServerError } from "./api.js";
import { requestMessages } from "./conversation.js";

const MAX_TRIES = 4; // of a server that says when to come back

export class Generation {
  #abort = new AbortController();
  #started = performance.now();
  #first = null; // when the first text came
  #pieces = 0;
  #waiting = ""; // why nothing comes, if the server said so
  #totals = {};

  constructor(conversation, message) {
    this.message = message;
    const { model, sampling } = conversation.settings;
    const messages = requestMessages(conversation, message.parent);
    this.request = { ...(model && { model }), messages, ...sampling };
  }

  stop() {
    this.message.finish = "stopped"; // now: the page may be closing
    this.#abort.abort();
  }

  /** Generate the whole answer. It does not throw: the message says how it ended. */
  async run(key) {
    const { message } = this;
    try {
      await this.#read(key);
      if (message.finish === "unfinished") message.finish = "stop";
    } catch (error) {
      if (!this.#abort.signal.aborted) {
        const { kind, advice } = error instanceof ServerError ? error : { kind: "other", advice: "The page failed." };
        message.error = { kind, message: error.message, advice };
        message.finish = "error";
      }
    }
    message.figures = this.#figures();
  }

  async #read(key) {
    const { message } = this;
    const { signal } = this.#abort;
    for (let tries = 1; ; tries += 1) {
      try {
        for await (const { text, finish_reason, usage, timings } of chat(this.request, key, signal)) {
          if (text) {
            this.#first ??= performance.now();
            message.content += text;
            this.#pieces += 1;
          }
          if (finish_reason) message.finish = finish_reason;
          this.#totals = { usage: usage ?? this.#totals.usage, timings: timings ?? this.#totals.timings };
        }
        return;
      } catch (error) {
        if (error.kind !== "busy" || tries === MAX_TRIES || message.content) throw error;
        await this.#wait(error);
      }
    }
  }

  async #wait({ message, retry_s }) {
    const { signal } = this.#abort;
    for (let left = retry_s; left > 0; left -= 1) {
      this.#waiting = `${message} Trying again in ${left} s.`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(left, 1)));
      signal.throwIfAborted();
    }
    this.#waiting = "";
  }

  /** What to say of an answer that is not finished. */
  status() {
    if (this.#waiting) return this.#waiting;
    const now = performance.now();
    if (this.#first === null) return `Waiting for the first token, ${((now - this.#started) / 1000).toFixed(1)} s`;
    const speed = (1000 * (this.#pieces - 1)) / (now - this.#first);
    return this.#pieces > 4 ? `${speed.toFixed(1)} tokens/s` : "";
  }

  /** The server's own figures where it gives them; the time to the first token is what the user waited. */
  #figures() {
    if (this.#first === null || !this.#pieces) return "";
    const { usage, timings } = this.#totals;
    const n = timings?.predicted_n ?? usage?.completion_tokens ?? this.#pieces;
    const speed = timings?.predicted_per_second ?? (1000 * (n - 1)) / (performance.now() - this.#first);
    const parts = [];
    if (n > 1) parts.push(`${speed.toFixed(1)} tokens/s`);
    parts.push(`first token after ${((this.#first - this.#started) / 1000).toFixed(2)} s`, `${n} ${n === 1 ? "token" : "tokens"}`);
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens;
      parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} from the cache` : ""}`);
    }
    return parts.join(" · ");
  }
}
