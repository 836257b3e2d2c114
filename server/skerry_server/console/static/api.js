// The REST API as the console uses it, and the stream of changes.

/** A call that failed, with what the API said about it. */
export class ApiError extends Error {
  constructor(status, failure) {
    super(failure.message);
    this.status = status;
    this.kind = failure.kind;
  }
}

const SILENCE_MS = 40_000;

export class Api {
  constructor(token) {
    this.token = token;
  }

  get(path) {
    return this.#call("GET", path);
  }

  post(path, body = {}) {
    return this.#call("POST", path, body);
  }

  async #call(method, path, body) {
    const headers = { authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(`/v1/${path}`, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: AbortSignal.timeout(30_000),
        cache: "no-store",
      });
    } catch {
      throw new ApiError(0, { kind: "unreachable", message: "The control plane cannot be reached." });
    }
    const type = response.headers.get("content-type") ?? "";
    if (response.ok) return type.includes("json") ? response.json() : response.text();
    let failure = { kind: "internal", message: `The control plane answered ${response.status}.` };
    try {
      failure = (await response.json()).error;
    } catch { /* not ours: the status has to do */ }
    throw new ApiError(response.status, failure);
  }

  /**
   * Follow changes until `signal` is aborted; reconnects with back-off.
   * @param onTopics called with the names of changed resources
   * @param onState called with "live", "waiting" or "refused"
   */
  async follow({ signal, onTopics, onState }) {
    let failures = 0;
    while (!signal.aborted) {
      const watchdog = new AbortController();
      const stop = () => watchdog.abort();
      signal.addEventListener("abort", stop, { once: true });
      let timer = setTimeout(stop, SILENCE_MS);
      try {
        const response = await fetch("/v1/events", {
          headers: { authorization: `Bearer ${this.token}` },
          signal: watchdog.signal,
          cache: "no-store",
        });
        if (response.status === 401) {
          onState("refused");
          return;
        }
        if (!response.ok) throw new Error(`status ${response.status}`);
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let buffer = "";
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          clearTimeout(timer);
          timer = setTimeout(stop, SILENCE_MS);
          buffer += value;
          const events = buffer.split("\n\n");
          buffer = events.pop();
          for (const event of events) {
            const kind = /^event: (.*)$/m.exec(event)?.[1];
            if (kind === "hello") {
              failures = 0;
              onState("live");
            } else if (kind === "change") {
              onTopics(JSON.parse(/^data: (.*)$/m.exec(event)[1]).topics);
            } else if (kind === "busy") {
              throw new Error("busy");
            }
          }
        }
      } catch {
        failures += 1;
      } finally {
        clearTimeout(timer);
        signal.removeEventListener("abort", stop);
      }
      if (signal.aborted) return;
      if (failures > 0) onState("waiting");
      await pause(failures === 0 ? 100 : Math.min(10_000, 500 * 2 ** Math.min(failures - 1, 5)), signal);
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
