// @ts-check
/** Log of a job: its events and the lines of its engine process, in one order. */

import { html, useEffect, useRef, useState } from "../../vendor/htm-preact.js";
import { Copy, save } from "../../components/actions.js";
import { clockTime, number, percent } from "../../format.js";
import { EVENT_NAMES, LOG_WORDS } from "../../words.js";

/** @typedef {{ sequence: number, at: string, level: string, stage: string, text: string }} Entry */

const LEVELS = ["debug", "info", "warning", "error", "critical"];
/** Filters: least severe level that is shown, and its name. @type {[string, string][]} */
const FILTERS = [["debug", "All lines"], ["warning", "Warnings and errors"], ["error", "Errors only"]];
/** Fields of a line that are part of its text. */
const IN_TEXT = ["stage", "message", "lines"];

/** @param {any} event @returns {Entry} */
function eventEntry(event) {
  const { data, type, sequence } = event;
  const common = { sequence, at: event.created_at, level: type === "failed" ? "error" : type === "requeued" && data.error ? "warning" : "info" };
  if (type === "progress") return { ...common, stage: data.stage, text: `${data.message}${finished(data.finished)}` };
  const { message, code } = data.error || data;
  const detail = message || data.reason || data.worker;
  return { ...common, stage: "job", text: `${type === "started" ? "a worker has started" : EVENT_NAMES[type] || type}${detail ? `: ${detail}` : ""}${code ? ` (${code})` : ""}` };
}

/** @param {any} line @returns {Entry} */
function lineEntry(line) {
  const { event, fields, sequence, level } = line;
  const common = { sequence, at: line.time, level, stage: fields.stage || "engine" };
  if (event === "step") return { ...common, text: String(fields.message) };
  if (event === "layer_finished") return { ...common, text: `layer ${fields.layer + 1}${fields.layers ? `/${fields.layers}` : ""} is finished${finished(fields)}` };
  const words = LOG_WORDS[event]?.(fields) || event;
  const others = Object.entries(fields).filter(([name]) => !IN_TEXT.includes(name));
  const [long, short] = [true, false].map((isLong) => others.filter(([, value]) => String(value).includes("\n") === isLong));
  const inline = short.map(([name, value]) => ` ${name}=${value}`).join("");
  return { ...common, text: `${words}${inline}${long.map(([name, value]) => `\n${name}: ${value}`).join("")}` };
}

/** @param {any} layer */
function finished(layer) {
  if (!layer) return "";
  const errors = [layer.attention_error, layer.mlp_error].filter((error) => error !== null && error !== undefined);
  return `: attention ${percent(layer.attention_part, 0)}, MLP ${percent(layer.mlp_part, 0)} kept${errors.length ? `, error ${errors.map((error) => number(error, 2)).join(" / ")}` : ""}`;
}

/**
 * Events and lines in their order. Progress of a stage that the lines of the same attempt log is left out.
 * @param {any[]} events @param {any[]} lines @returns {Entry[]}
 */
export function logEntries(events, lines) {
  const logged = new Set(lines.filter((line) => line.fields.stage).map((line) => `${line.attempt} ${line.fields.stage}`));
  const others = events.filter((event) => event.type !== "progress" || !logged.has(`${event.attempt} ${event.data.stage}`));
  return [...others.map(eventEntry), ...lines.map(lineEntry)].sort((first, second) => first.sequence - second.sequence);
}

/** @param {Entry} entry */
const entryText = (entry) => `${clockTime(entry.at)}  ${entry.level.toUpperCase().padEnd(8)} ${entry.stage.padEnd(10)} ${entry.text}`;

/** A panel that can be collapsed. @param {{ job: any, events: any[], lines: any[] }} props */
export function Log({ job, events, lines }) {
  const [follow, setFollow] = useState(true);
  const [least, setLeast] = useState("debug");
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const entries = logEntries(events, lines);
  const shown = entries.filter((entry) => LEVELS.indexOf(entry.level) >= LEVELS.indexOf(least));
  const text = () => shown.map(entryText).join("\n");
  // Not their number, which stays the same once the oldest make room for new ones.
  const newest = shown.length ? shown[shown.length - 1].sequence : 0;
  useEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [newest, follow]);
  return html`<details class="card" open><summary>Log <span class="dim small">${entries.length} ${entries.length === 1 ? "line" : "lines"}</span></summary>
    <div class="body stack">
      <div class="actions">
        <select class="inline" aria-label="Level" value=${least} onChange=${(/** @type {any} */ e) => setLeast(e.target.value)}>
          ${FILTERS.map(([level, name]) => html`<option value=${level}>${name}</option>`)}
        </select>
        <label class="check small"><input type="checkbox" checked=${follow} onChange=${() => setFollow(!follow)} />Follow</label>
        <${Copy} text=${text} what="the log" />
        <button type="button" class="small" onClick=${() => save(`${job.id}.log`, `${text()}\n`)}>Download</button>
      </div>
      ${shown.length
        ? html`<div class="code log" role="log" aria-label="Log lines" tabindex="0" ref=${box}>${shown.map((entry) => html`<div key=${entry.sequence} class=${`line ${entry.level}`}>${entryText(entry)}</div>`)}</div>`
        : html`<p class="sub">${entries.length ? "No lines of this level." : "Nothing has happened yet."}</p>`}
    </div>
  </details>`;
}
