"""quick.py MODEL BOS variants...: sensitivity on few sequences, plan by curves, refit with fixed dampings."""
import sys,os,time,json,math,warnings,tempfile,torch
warnings.filterwarnings("ignore")
sys.path.insert(0,"/work/wt/bos"); sys.path.insert(0,"/work/wt/bos/benchmarks")
torch.set_num_threads(2); torch.set_grad_enabled(False)
from pathlib import Path
from sequence_starts import engine_as
from intraslice_core.calibration import source_tokens, windows
from intraslice_core.calibration.windows import full_windows, prefixed
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.dense_model import DenseLayerReader, mean_loss
from intraslice_core.sensitivity import measurement as MM
from intraslice_core.sensitivity.measurement import measure_layers
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from intraslice_core.allocation.estimators import lagrangian_shapes
from intraslice_core.allocation.search import CANDIDATES
from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CompressionConfig
from intraslice_core.methods import METHODS
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core import decoder_layer
from intraslice_core.tokenizer import load_tokenizer
from dataclasses import replace
model,bos=sys.argv[1],int(sys.argv[2]); variants=sys.argv[3:]
L=256; SENS=int(os.environ.get("SENS","10")); FIT=int(os.environ.get("FIT","24")); EVW=int(os.environ.get("EVW","8")); RATIO=float(os.environ.get("RATIO","0.3"))
MM.TRIAL_CUTS=(); MM.PAIR_QUERIES=48; MM.PAIR_SEQUENCES=6
dev=torch.device("cpu"); BF=torch.bfloat16
tok=load_tokenizer(Path(model))
def text(src,part,n):
    t=source_tokens(src,tok,part=part,max_tokens=n); return t[t!=bos]
D="/work/shared/data/wikitext2."
cal=text(D+"valid.txt.gz","calibration",8*FIT*L)
cal=cal[:len(cal)//L*L].view(-1,L)[torch.randperm(len(cal)//L,generator=torch.Generator().manual_seed(0))[:FIT+2]]
withb=prefixed(cal[:,:-1],(bos,))
ev={s.split("/")[-1][:9]:full_windows(text(s,"evaluation",EVW*(L-1)),(bos,),L)[:EVW] for s in (D+"test.txt.gz","pydoc","pycode")}
t0=time.time()
def log(*a): print(round(time.time()-t0),round(time.process_time()),*a,flush=True)
log({k:tuple(v.shape) for k,v in ev.items()})
cfg=CompressionConfig(ratio=RATIO)
with CheckpointReader(Path(model)) as reader, tempfile.TemporaryDirectory(dir="/tmp/bos") as tmp, torch.inference_mode():
    layers=DenseLayerReader(reader,dev,BF)
    geo=reader.family.geometry(reader.config); budget=compression_budget(cfg,geo,2).parameters
    allw=torch.cat(list(ev.values())); n=[len(v) for v in ev.values()]
    def score(check,p=1):
        parts=check.split(n); return {k:round(math.exp(mean_loss(layers,h,w,prefix_length=p)),2) for (k,w),h in zip(ev.items(),parts)}
    def passed(check,w,s,r):
        return torch.cat([decoder_layer.forward(x,w,s,r) for x in check.split(4)])
    if "dense" in variants:
        h=layers.embed(allw)
        for l in range(layers.num_layers): h=passed(h,layers.weights(l),layers.settings(l),layers.rotary(l,L))
        log("dense",score(h))
    done={}
    for v in variants:
        if v=="dense": continue
        name,_,uni=v.partition("/")
        tokens=cal if name=="without" else withb
        p=0 if name in("without","plain") else 1
        with engine_as(name if name in("without","plain","excluded","scaled") else "scaled"):
            if name not in done:
                gk=f"g-{name=='without'}-{p}"; files=GradientFiles(directory=Path(tmp)/gk)
                if not files.directory.exists():
                    loss_gradients(layers,tokens[:8],batch_size=4,files=files,before_batch=lambda _:None,prefix_length=p); log("gradients",gk)
                done[name]=measure_layers(layers,tokens[:SENS],tokens[FIT:],files,batch_size=4,before_batch=lambda _:None,prefix_length=p); log("measured",name)
            m=done[name]
            plan=uniform_plan(geo,RATIO,cfg.round_to,"free") if uni=="uniform" else lagrangian_shapes(m,geo,budget,cfg,CANDIDATES[0]).plan
            method=replace(METHODS["intraslice_plus"],damping_own=(0.1,),damping_correction=(1.0,))
            h=layers.embed(tokens[:FIT]); st=HiddenStates(compressed=h.clone(),dense=h.clone(),prefix_length=p); check=layers.embed(allw)
            for l,lp in enumerate(plan.layers):
                c=LayerContext(layer=l,settings=layers.settings(l),rotary=layers.rotary(l,L),method=method,batch_size=4,device=dev,stored_dtype=BF,before_batch=lambda _:None,sensitivity=m.layers[l])
                w=LayerCompressor(layers.weights(l),lp,st,c).run().weights
                check=passed(check,w,c.settings,c.rotary)
        a=sum(x.num_attention_heads*(x.qk_head_dim+x.v_head_dim) for x in plan.layers)/(geo.num_hidden_layers*geo.num_attention_heads*2*geo.head_dim)
        r={"model":model.split("/")[-1],"variant":v,**score(check),"attention":round(a,3),"RATIO":RATIO,"FIT":FIT,"SENS":SENS}
        log(json.dumps(r)); open("/tmp/bos/table.jsonl","a").write(json.dumps(r)+"\n")
