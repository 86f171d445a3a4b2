// The server as this page asks it. An answer is a stream of events, read as it comes.

/** The models that are served: [{id, parent, ...}]. */
export async function models(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) {
    throw new Error(await problem(response));
  }
  return (await response.json()).data;
}

/** The chunks of an answer. signal: of an AbortController, which ends it. */
export async function* answer(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) {
    throw new Error(await problem(response));
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      throw new Error("the server went away before the answer's end");
    }
    held += value;
    let end = held.indexOf("\n\n");
    for (; end >= 0; end = held.indexOf("\n\n")) {
      const data = held.slice("data: ".length, end);
      held = held.slice(end + 2);
      if (data === "[DONE]") {
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) {
        throw new Error(chunk.error.message);
      }
      yield chunk;
    }
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}
