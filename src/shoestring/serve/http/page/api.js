// The server as this page asks it. An answer is a stream of events, read as it comes.

const TEXT_TOKENS = 256; // of a text that is only continued, where the settings say nothing

/** The models that are served: [{id, parent, converses, ...}]. */
export async function models(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) {
    throw new Error(await problem(response));
  }
  return (await response.json()).data;
}

/**
 * The pieces of an answer: {text, reason, tokens}; reason and tokens are undefined until the end. A model that was not
 * taught to converse goes on with the last message as a text. signal: of an AbortController, which ends it.
 */
export async function* answer(model, messages, settings, key, signal) {
  for await (const chunk of model.converses ? chat() : text()) {
    const choice = chunk.choices[0];
    yield {
      text: choice?.delta?.content ?? choice?.text ?? "",
      reason: choice?.stop_reason,
      tokens: chunk.usage?.completion_tokens,
    };
  }

  function chat() {
    return events("v1/chat/completions", { model: model.id, messages, ...settings }, key, signal);
  }

  function text() {
    const { max_completion_tokens: most, ...others } = settings;
    const body = { model: model.id, prompt: messages.at(-1).content, max_tokens: most ?? TEXT_TOKENS, ...others };
    return events("v1/completions", body, key, signal);
  }
}

async function* events(path, body, key, signal) {
  const response = await fetch(path, {
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
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
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
