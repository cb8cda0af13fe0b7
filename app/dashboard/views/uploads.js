// @ts-check
/** Models and texts from this computer. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, remove } from "../api.js";
import { Action, Fault, State, Table, tellShell, useLoaded } from "../parts.js";
import { modelFiles, sendParcel } from "../transfer.js";
import { ago, bytes, percent } from "../words.js";

export function Uploads() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/uploads?limit=100", signal), [], 10);
  return html`<h1>Models and texts</h1>
    <p class="quiet">What jobs may use beside what the service offers. Large ones, or many, go faster by <span class="mono">intraslice submit ./directory</span>.</p>
    <div class="columns">
      <${Sender} kind="model" done=${reload} title="Send a model"
        what="A directory with config.json, safetensors and the tokenizer's files. Code and pickles stay on your computer." />
      <${Sender} kind="text" done=${reload} title="Send a text"
        what="For calibration and evaluation: .txt, or .jsonl with “text” or “messages” in each line; gzipped or not." />
    </div>
    <h2>What is here</h2>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Models and texts" empty="Nothing was sent yet."
      columns=${["name", "kind", "size\u00a0", "state", "sent", ""]} rows=${data.data.map((/** @type {any} */ one) => row(one, reload))} />` : null}`;
}

/** @param {any} one @param {() => void} reload */
const row = (one, reload) => [
  html`<b>${one.name || "–"}</b><br /><span class="mono quiet">${one.id}</span>`,
  one.kind,
  bytes(one.bytes),
  html`<${State} state=${one.state} />${one.error ? html`<p class="fault small">${one.error.message}</p>` : null}`,
  ago(one.created_at),
  html`<span class="actions">
    ${one.kind === "model" && one.state === "ready" ? html`<a class="button" href=${`#/new?upload=${one.id}`}>Compress it</a>` : null}
    <${Action} confirm=${`Forget ${one.name || one.id} and its files?`} work=${async () => { await remove(`/v1/uploads/${one.id}`); reload(); }}>Delete<//>
  </span>`,
];

/** @param {{ kind: "model" | "text", title: string, what: string, done: () => void }} props */
function Sender({ kind, title, what, done }) {
  const [files, setFiles] = useState(/** @type {File[]} */ ([]));
  const [left, setLeft] = useState(/** @type {string[]} */ ([]));
  const [progress, setProgress] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [sent, setSent] = useState(/** @type {any} */ (null));
  const stop = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => stop.current?.abort(), []);
  const choose = (/** @type {any} */ event) => {
    const chosen = /** @type {File[]} */ ([...event.target.files]);
    const { taken, left } = kind === "model" ? modelFiles(chosen) : { taken: chosen, left: [] };
    setFiles(taken);
    setLeft(left);
    setError(null);
    setSent(null);
  };
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const { signal } = (stop.current = new AbortController());
    setError(null);
    try {
      setSent(await sendParcel({ kind, name: called(kind, files), files }, setProgress, signal));
    } catch (found) {
      if (!signal.aborted) setError(found);
      tellShell(found);
    }
    setProgress(null);
    done();
  };
  const id = `${kind}-files`;
  return html`<form class="panel" onSubmit=${send}>
    <h2>${title}</h2>
    <p class="hint" id=${`${id}-hint`}>${what}</p>
    <label for=${id}>${kind === "model" ? "Directory" : "File"}</label>
    <input id=${id} type="file" webkitdirectory=${kind === "model"} accept=${kind === "text" ? ".txt,.jsonl,.gz" : undefined}
      aria-describedby=${`${id}-hint`} disabled=${progress !== null} onChange=${choose} />
    ${files.length ? html`<p class="small">${files.length} ${files.length === 1 ? "file" : "files"}, ${bytes(files.reduce((sum, one) => sum + one.size, 0))}.${left.length ? ` Stay here: ${left.slice(0, 4).join(", ")}${left.length > 4 ? ` and ${left.length - 4} more` : ""}.` : ""}</p>` : null}
    ${left.length && !files.length ? html`<p class="fault">Nothing in it is of a model: choose the directory with config.json itself.</p>` : null}
    ${progress ? html`<${Sending} progress=${progress} />` : null}
    <div class="actions">
      <button class="main" disabled=${!files.length || progress !== null}>Send</button>
      ${progress ? html`<button type="button" onClick=${() => stop.current?.abort()}>Stop</button>` : null}
    </div>
    ${sent ? html`<p role="status">It is here. ${kind === "model" ? html`<a href=${`#/new?upload=${sent.id}`}>Compress it</a>` : html`Jobs can be calibrated on it: <a href="#/new">New job</a>, under “More”.`}</p>` : null}
    <${Fault} error=${error} />
  </form>`;
}

const STAGES = { reading: "Reading (for the checksums)", sending: "Sending", checking: "The service checks it" };

/** @param {{ progress: import("../transfer.js").Progress }} props */
const Sending = ({ progress }) => html`<progress max="1" value=${progress.stage === "checking" ? undefined : progress.done / progress.total} aria-label=${STAGES[progress.stage]}></progress>
  <p class="small" role="status">${STAGES[progress.stage]}${progress.stage === "checking" ? " …" : ` · ${percent(progress.done / progress.total, 0)}`}</p>`;

/** @param {string} kind @param {File[]} files */
const called = (kind, files) => (kind === "model" ? files[0].webkitRelativePath.split("/")[0] || "model" : files[0].name).slice(0, 200);
