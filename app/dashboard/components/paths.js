// @ts-check
/** Picker of directories and files of the server, one level at a time. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { bytes } from "../format.js";
import { useLoaded } from "../hooks.js";
import { Fault, Loading, Tag } from "./basics.js";

const PAGE = 50;

/** @typedef {{ name: string, path: string, type: "directory" | "file", contents: "model" | "dataset" | null, bytes: number | null }} Entry */

/**
 * Directories below the allowed ones; `action` renders what can be done with a model or a text.
 * @param {{ use: "model" | "data", label: string, action: (entry: Entry) => any }} props
 */
export function PathPicker({ use, label, action }) {
  const [place, setPlace] = useState({ path: "", after: /** @type {string[]} */ ([]) });
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  const moved = useRef(false);
  const query = new URLSearchParams({ use, limit: String(PAGE) });
  if (place.path) query.set("path", place.path);
  if (place.after.length) query.set("after", place.after[place.after.length - 1]);
  const { data, error } = useLoaded((signal) => get(`/v1/server-paths?${query}`, signal), [query.toString()]);
  // The pressed button is gone in the new list: keep the keyboard's place.
  useEffect(() => {
    if (moved.current) list.current?.focus();
  }, [data]);
  const open = (/** @type {string | null} */ path) => {
    moved.current = true;
    setPlace({ path: path || "", after: [] });
  };
  const turn = (/** @type {string[]} */ after) => {
    moved.current = true;
    setPlace({ ...place, after });
  };
  return html`<div role="group" aria-label=${label} class="paths" tabindex="-1" ref=${list}>
    <${Fault} error=${error} />
    ${!data && !error ? html`<${Loading} what="the directories" />` : null}
    ${place.path ? html`<p class="actions small"><button type="button" class="small" onClick=${() => open(error ? null : data?.parent)}>Up</button><span class="mono">${data?.path || place.path}</span></p>` : null}
    ${data && !data.data.length ? html`<p class="sub small">${place.path ? "Nothing here that a job can use." : "None of the allowed directories exists on this server."}</p>` : null}
    <ul class="plain small">${(data?.data || []).map((/** @type {Entry} */ entry) => html`<li key=${entry.path} class="actions">
      ${entry.type === "directory" ? html`<button type="button" class="small ghost mono" onClick=${() => open(entry.path)}>${entry.name}/</button>` : html`<span class="mono">${entry.name}</span> <span class="dim">${bytes(entry.bytes)}</span>`}
      ${entry.contents ? html`${entry.contents === "model" ? html`<${Tag}>model<//>` : null}${action(entry)}` : null}
    </li>`)}</ul>
    <div class="actions">
      ${place.after.length ? html`<button type="button" class="small" onClick=${() => turn(place.after.slice(0, -1))}>Back</button>` : null}
      ${data?.has_more ? html`<button type="button" class="small" onClick=${() => turn([...place.after, data.next_cursor])}>More</button>` : null}
    </div>
  </div>`;
}

/** A picker that is loaded when it is opened. @param {{ summary: string, use: "model" | "data", label: string, action: (entry: Entry) => any }} props */
export function Browse({ summary, ...props }) {
  const [open, setOpen] = useState(false);
  return html`<details class="plain" onToggle=${(/** @type {any} */ e) => setOpen(e.currentTarget.open)}>
    <summary>${summary}</summary>
    ${open ? html`<${PathPicker} ...${props} />` : null}
  </details>`;
}

/** @param {{ entry: Entry, verb: string, press: () => void }} props */
export const PathButton = ({ entry, verb, press }) => html`<button type="button" class="small" onClick=${press}>${verb}<span class="hidden"> ${entry.name}</span></button>`;
