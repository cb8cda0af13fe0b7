// @ts-check
/** Uploads of models and texts from this computer. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, remove } from "../api.js";
import { Action, Fault, State, Table, reportToShell, useLoaded } from "../parts.js";
import { modelFiles, uploadParcel } from "../transfer.js";
import { ago, bytes, percent } from "../words.js";

export function Uploads() {
  const { data, error, reload } = useLoaded((signal) => get("/v1/uploads?limit=100", signal), [], 10);
  return html`<h1>Models and texts</h1>
    <p class="quiet">Your own models and texts for jobs. Large or many files upload faster with <span class="mono">intraslice submit ./directory</span>.</p>
    <div class="columns">
      <${UploadForm} kind="model" done=${reload} title="Upload a model"
        hint="A directory with config.json, safetensors and the tokenizer's files. Code and pickles are not uploaded." />
      <${UploadForm} kind="text" done=${reload} title="Upload a text"
        hint="For calibration and evaluation: .txt, .md, .jsonl, .json, .csv or .parquet, with texts, chats or instructions as records; all but .parquet also as .gz or .zst." />
    </div>
    <h2>Uploads</h2>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Models and texts" empty="No uploads yet."
      columns=${["name", "kind", "size\u00a0", "state", "uploaded", ""]} rows=${data.data.map((/** @type {any} */ upload) => row(upload, reload))} />` : null}`;
}

/** @param {any} upload @param {() => void} reload */
const row = (upload, reload) => [
  html`<b>${upload.name || "–"}</b><br /><span class="mono quiet">${upload.id}</span>`,
  upload.kind,
  bytes(upload.bytes),
  html`<${State} state=${upload.state} />${upload.error ? html`<p class="fault small">${upload.error.message}</p>` : null}`,
  ago(upload.created_at),
  html`<span class="actions">
    ${upload.kind === "model" && upload.state === "ready" ? html`<a class="button" href=${`#/new?upload=${upload.id}`}>Compress</a>` : null}
    <${Action} confirm=${`Delete ${upload.name || upload.id} and its files?`} work=${async () => { await remove(`/v1/uploads/${upload.id}`); reload(); }}>Delete<//>
  </span>`,
];

/** @param {{ kind: "model" | "text", title: string, hint: string, done: () => void }} props */
function UploadForm({ kind, title, hint, done }) {
  const [files, setFiles] = useState(/** @type {File[]} */ ([]));
  const [skipped, setSkipped] = useState(/** @type {string[]} */ ([]));
  const [progress, setProgress] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [uploaded, setUploaded] = useState(/** @type {any} */ (null));
  const stop = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => stop.current?.abort(), []);
  const choose = (/** @type {any} */ event) => {
    const selected = /** @type {File[]} */ ([...event.target.files]);
    const { accepted, skipped } = kind === "model" ? modelFiles(selected) : { accepted: selected, skipped: [] };
    setFiles(accepted);
    setSkipped(skipped);
    setError(null);
    setUploaded(null);
  };
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const { signal } = (stop.current = new AbortController());
    setError(null);
    try {
      setUploaded(await uploadParcel({ kind, name: uploadName(kind, files), files }, setProgress, signal));
    } catch (failure) {
      if (!signal.aborted) setError(failure);
      reportToShell(failure);
    }
    setProgress(null);
    done();
  };
  const id = `${kind}-files`;
  return html`<form class="panel" onSubmit=${send}>
    <h2>${title}</h2>
    <p class="hint" id=${`${id}-hint`}>${hint}</p>
    <label for=${id}>${kind === "model" ? "Directory" : "File"}</label>
    <input id=${id} type="file" webkitdirectory=${kind === "model"} accept=${kind === "text" ? ".txt,.md,.jsonl,.json,.csv,.parquet,.gz,.zst" : undefined}
      aria-describedby=${`${id}-hint`} disabled=${progress !== null} onChange=${choose} />
    ${files.length ? html`<p class="small">${files.length} ${files.length === 1 ? "file" : "files"}, ${bytes(files.reduce((sum, file) => sum + file.size, 0))}.${skipped.length ? ` Not uploaded: ${skipped.slice(0, 4).join(", ")}${skipped.length > 4 ? ` and ${skipped.length - 4} more` : ""}.` : ""}</p>` : null}
    ${skipped.length && !files.length ? html`<p class="fault">No model files found: choose the directory that contains config.json.</p>` : null}
    ${progress ? html`<${Transfer} progress=${progress} />` : null}
    <div class="actions">
      <button class="main" disabled=${!files.length || progress !== null}>Upload</button>
      ${progress ? html`<button type="button" onClick=${() => stop.current?.abort()}>Cancel</button>` : null}
    </div>
    ${uploaded ? html`<p role="status">Upload complete. ${kind === "model" ? html`<a href=${`#/new?upload=${uploaded.id}`}>Compress this model</a>` : html`Use it in a <a href="#/new">new job</a>, under “Advanced settings”.`}</p>` : null}
    <${Fault} error=${error} />
  </form>`;
}

const STAGES = { reading: "Computing checksums", sending: "Uploading", checking: "Verifying" };

/** @param {{ progress: import("../transfer.js").Progress }} props */
const Transfer = ({ progress }) => html`<progress max="1" value=${progress.stage === "checking" ? undefined : progress.done / progress.total} aria-label=${STAGES[progress.stage]}></progress>
  <p class="small" role="status">${STAGES[progress.stage]}${progress.stage === "checking" ? " …" : ` · ${percent(progress.done / progress.total, 0)}`}</p>`;

/** @param {string} kind @param {File[]} files */
const uploadName = (kind, files) => (kind === "model" ? files[0].webkitRelativePath.split("/")[0] || "model" : files[0].name).slice(0, 200);
