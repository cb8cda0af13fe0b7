// @ts-check
/** Texts for calibration and evaluation: the project's own, and those of the server. */

import { html } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Card, Fault, Loading, PageHead, Tag } from "../components/basics.js";
import { Browse } from "../components/paths.js";
import { Table } from "../components/table.js";
import { allowedTexts } from "../form/request.js";
import { useLoaded, useOffer } from "../hooks.js";
import { textName } from "../words.js";
import { UploadForm, Uploads } from "./uploads/form.js";

/** @type {Record<string, [string, boolean]>} what a text is, and whether the model writes it */
const TEXTS = {
  pydoc: ["Documentation of the Python that runs the worker", false],
  pycode: ["Source code of the same Python", false],
  chat: ["Conversations that the model itself writes", true],
  self: ["Text that the model itself writes, beginning from nothing", true],
  web: ["English web pages at a pinned revision, read from the Hugging Face Hub", false],
};

/** @param {import("../components/paths.js").Entry} entry */
const useLink = (entry) => html`<a href=${`#/new?text=${encodeURIComponent(entry.path)}`}>Use in a new job<span class="hidden"> ${entry.name}</span></a>`;

export function Datasets() {
  const offer = useOffer();
  const { data, error, reload } = useLoaded((signal) => get("/v1/uploads?limit=100", signal), [], 10);
  const own = (data?.data || []).filter((/** @type {any} */ upload) => upload.kind === "text");
  return html`<${PageHead} title="Datasets" about="Texts for calibration and evaluation. A model keeps best what it is calibrated on; a text that it was not calibrated on tells what real use will be like."><//>
    <div class="halves gap">
      <${UploadForm} kind="text" done=${reload} title="Upload a text"
        hint="For calibration and evaluation: .txt, .md, .jsonl, .json, .csv or .parquet, with texts, chats or instructions as records; all but .parquet also as .gz or .zst." />
      <${Card} title="Texts of this server">
        ${offer ? html`<${Table} label="Texts of this server" columns=${["Text", "Contents", "Use"]} rows=${allowedTexts(offer).map((text) => [
          html`<b>${textName(text)}</b>`, TEXTS[text]?.[0] || "", html`<span class="actions"><${Tag}>calibration<//>${TEXTS[text]?.[1] ? null : html`<${Tag}>evaluation<//>`}</span>`,
        ])} />
        ${offer.hub_data.length ? html`<p class="hint">Data sets of the Hugging Face Hub that jobs may name: <span class="mono">${offer.hub_data.join(", ")}</span></p>` : null}
        ${offer.data_roots.length ? html`<p class="hint">Files below <span class="mono">${offer.data_roots.join(", ")}</span></p>
          <${Browse} summary="Browse the server" use="data" label="Texts of the server" action=${useLink} />` : null}` : html`<${Loading} />`}
      <//>
    </div>
    <${Card} title="Uploaded texts"><${Fault} error=${error} />${data ? html`<${Uploads} label="Uploaded texts" empty="No uploads yet." uploads=${own} reload=${reload} />` : error ? null : html`<${Loading} />`}<//>`;
}
