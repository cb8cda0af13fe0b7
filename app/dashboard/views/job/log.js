// @ts-check
/** Log of a job: its events as lines. */

import { html, useEffect, useRef, useState } from "../../vendor/htm-preact.js";
import { Copy, save } from "../../components/actions.js";
import { clockTime, number, percent } from "../../format.js";
import { stateName } from "../../words.js";

/** @type {Record<string, string>} */
const TYPES = {
  started: "a worker has started", pause_requested: "pause requested", resumed: "resumed", cancel_requested: "cancellation requested",
  requeued: "queued again", retried: "retried",
};

/** @param {any} event */
function line(event) {
  const { data, type } = event;
  if (type !== "progress") {
    const words = TYPES[type] || stateName(type).toLowerCase();
    return `${clockTime(event.created_at)}  ${"job".padEnd(10)} ${words}${data?.message ? `: ${data.message}` : ""}${data?.code ? ` (${data.code})` : ""}`;
  }
  return `${clockTime(event.created_at)}  ${String(data.stage).padEnd(10)} ${data.message}${finished(data.finished)}`;
}

/** @param {any} layer */
function finished(layer) {
  if (!layer) return "";
  const errors = [layer.attention_error, layer.mlp_error].filter((error) => error !== null && error !== undefined);
  return `: attention ${percent(layer.attention_part, 0)}, MLP ${percent(layer.mlp_part, 0)} kept${errors.length ? `, error ${errors.map((error) => number(error, 2)).join(" / ")}` : ""}`;
}

/** @param {{ job: any, events: any[] }} props */
export function Log({ job, events }) {
  const [follow, setFollow] = useState(true);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const text = events.map(line).join("\n");
  useEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text, follow]);
  return html`<section class="card" aria-label="Log">
    <header><h2>Log <span class="dim small">${events.length} ${events.length === 1 ? "event" : "events"}</span></h2>
      <span class="actions">
        <label class="check small"><input type="checkbox" checked=${follow} onChange=${() => setFollow(!follow)} />Follow</label>
        <${Copy} text=${text} what="the log" />
        <button type="button" class="small" onClick=${() => save(`${job.id}.log`, `${text}\n`)}>Download</button>
      </span></header>
    <div class="body">${events.length ? html`<pre class="code log" tabindex="0" role="region" aria-label="Log lines" ref=${box}>${text}</pre>` : html`<p class="sub">Nothing has happened yet.</p>`}</div>
  </section>`;
}
