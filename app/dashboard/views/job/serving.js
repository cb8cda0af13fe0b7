// @ts-check
/** Memory to serve a model: its weights and the KV cache of a context and a batch. */

import { html } from "../../vendor/htm-preact.js";
import { Card, Delta } from "../../components/basics.js";
import { Table } from "../../components/table.js";
import { bytes, change, count } from "../../format.js";

export const CONTEXTS = [1024, 4096, 16_384, 65_536];
export const BATCHES = [1, 4, 16, 64];

/**
 * Bytes to serve both models with all keys and values of the context in memory. Cached numbers are as wide as weights, at
 * least 16 bits.
 * @param {any} report @param {number} context tokens of each sequence @param {number} batch sequences at once
 */
export function servingMemory(report, context, batch) {
  const { geometry, plan } = report;
  const width = Math.max(2, Math.round(report.bytes_before / report.params_before));
  const tokens = context * batch;
  const input = geometry.input_layers?.length ? geometry.input_layers : null;
  const dense = input ? perToken(input) : geometry.num_hidden_layers * geometry.num_key_value_heads * 2 * geometry.head_dim;
  const cache = { before: dense * width * tokens, after: perToken(plan.layers) * width * tokens };
  return {
    weights: { before: report.bytes_before, after: report.bytes_after },
    cache,
    total: { before: report.bytes_before + cache.before, after: report.bytes_after + cache.after },
  };
}

/** Numbers that the cache holds for a token. @param {any[]} layers */
const perToken = (layers) => layers.reduce((sum, layer) => sum + layer.num_key_value_heads * (2 * layer.qk_pairs + layer.v_head_dim), 0);

/** @param {{ report: any, load: { context: number, batch: number }, setLoad: (load: any) => void }} props */
export function Serving({ report, load, setLoad }) {
  const memory = servingMemory(report, load.context, load.batch);
  /** @param {string} name @param {number[]} values @param {string} label */
  const select = (name, values, label) => html`<select class="inline" aria-label=${label} value=${load[/** @type {"context" | "batch"} */ (name)]} onChange=${(/** @type {any} */ e) => setLoad({ ...load, [name]: Number(e.target.value) })}>
    ${values.map((value) => html`<option value=${value}>${name === "context" ? `${contextName(value)} context` : `batch ${value}`}</option>`)}
  </select>`;
  const aside = html`<span class="actions">${select("context", CONTEXTS, "Context length")}${select("batch", BATCHES, "Batch size")}</span>`;
  /** @param {string} name @param {{ before: number, after: number }} part */
  const row = (name, part) => [name, bytes(part.before), html`<b>${bytes(part.after)}</b>`, html`<${Delta} kind=${part.after < part.before ? "ok" : ""}>${change(part.after / part.before)}<//>`];
  return html`<${Card} title="Memory to serve" aside=${aside}>
    <${Table} label="Memory to serve" columns=${["Part", "Original\u00a0", "Compressed\u00a0", "Change\u00a0"]}
      rows=${[row("Weights", memory.weights), row("KV cache", memory.cache), row("Together", memory.total)]} />
    <p class="hint">Computed from the shapes, for full attention; a runtime adds its own buffers. vLLM reserves as many heads in every layer as the layer with the most.</p>
  <//>`;
}

/** @param {number} tokens */
export const contextName = (tokens) => `${count(tokens / 1024)}k`;
