"""What other programs call our keys: the nearest key by meaning, where letters lead astray (`lr` is near `layers`)."""

from __future__ import annotations

from collections.abc import Sequence

SYNONYMS = {  # words of others, without _ and -: our key, or its end
    "training.learning_rate": "lr baselr maxlr learnrate stepsize",
    "training.steps": "epochs epoch numepochs nepochs maxsteps numsteps maxepochs trainsteps totalsteps maxtrainsteps "
    "iters iterations niters numiterations",
    "training.batch_size": "bs batch batchsize trainbatchsize globalbatchsize globalbatch",
    "training.micro_batch": "microbatchsize perdevicebatchsize batchsizepergpu gradaccum gradientaccumulation "
    "gradientaccumulationsteps accumulategradbatches",
    "training.weight_decay": "wd decayweight l2",
    "training.warmup": "warmupsteps warmupiters lrwarmup lrwarmupsteps numwarmupsteps",
    "training.schedule": "scheduler lrscheduler lrschedule lrdecay",
    "training.clip": "gradclip clipgrad gradientclip maxgradnorm gradnorm clipnorm gradientclipval",
    "training.betas": "adambetas beta1 beta2 momentum",
    "training.precision": "dtype amp fp16 bf16 mixedprecision halfprecision",
    "training.zero_stage": "zero deepspeed deepspeedstage fsdp",
    "training.half_lives": "ema emadecay emarate emahalflife emahalflives",
    "training.activation_checkpointing": "gradientcheckpointing gradcheckpointing checkpointing recompute",
    "training.save_every": "savesteps saveinterval checkpointevery ckptevery checkpointinginterval savefreq",
    "training.validate_every": "evalevery valevery evalsteps valinterval evalinterval validationsteps",
    "training.preview_every": "sampleevery samplesteps sampleinterval imageevery vizevery",
    "training.log_every": "logsteps loginterval loggingsteps logfreq",
    "training.keep": "keepcheckpoints savetotallimit maxcheckpoints savetopk",
    "training.init_from": "pretrained initfromckpt ckptpath checkpoint loadfrom weightspath finetunefrom",
    "data.source": "dataset datasets images datadir trainfolder",
    "data.source.path": "datapath dataroot traindir imagefolder imagedir datasetpath",
    "data.size": "resolution imagesize imgsize res imgres imageresolution",
    "data.channels": "imagechannels inchannels gray grayscale colors",
    "data.split.val_fraction": "valsplit valratio valsize testsize holdout validationsplit",
    "data.augment.flip": "hflip horizontalflip randomflip mirror",
    "data.augment.crop": "randomcrop centercrop",
    "data.loader_workers": "numworkers dataloaderworkers loadernumworkers",
    "run.seed": "randomseed globalseed manualseed",
    "run.root": "outputdir outdir output out logdir workdir savedir rundir resultsdir",
    "run.name": "runname jobname",
    "tracking.experiment": "experimentname project projectname",
    "tracking.uri": "mlflowuri mlflow trackinguri tracker",
    "autoencoder": "vae ae firststage firststagemodel tokenizer vqgan",
    "autoencoder.model": "encoder decoder",
    "autoencoder.loss.kl_weight": "kl klloss beta",
    "autoencoder.loss.perceptual": "lpips perceptualloss perceptualweight lpipsweight",
    "autoencoder.loss.adversarial": "gan discriminator disc ganloss discweight advweight",
    "diffusion.backbone": "unet dit denoiser network net transformer architecture arch model",
    "diffusion.condition": "conditioning classcond classes numclasses labels nclasses",
    "diffusion.condition.drop": "dropout conddrop classdropout classdropprob uncondprob cfgdropout puncond",
    "diffusion.prediction": "predictiontype parameterization objective target",
    "diffusion.weighting": "lossweighting snrgamma minsnr",
    "diffusion.path": "process noiseschedule noisescheduler betaschedule",
    "evaluate.guidance": "cfg cfgscale guidancescale classifierfreeguidance",
    "evaluate.steps": "numinferencesteps samplingsteps inferencesteps nfe ddimsteps",
    "evaluate.sampler": "solver samplername",
    "evaluate.samples": "numsamples nsamples fidsamples numfidsamples",
    "cluster.workers": "gpus ngpus numgpus devices worldsize numproc nprocpernode ranks processes",
    "cluster.threads": "cpus numcpus ompnumthreads numthreads",
}
BY_WORD = {word: key for key, words in SYNONYMS.items() for word in words.split()}
KINDS = {  # models of others: our kind
    "vae": "kl", "autoencoderkl": "kl", "klvae": "kl", "vqvae": "vq", "vqgan": "vq", "vqmodel": "vq",
    "transformer": "dit", "vit": "dit", "uvit": "dit", "sit": "dit", "adm": "unet", "ddpm": "unet",
}  # fmt: skip


def squeezed(word: str) -> str:
    """A word without what programs spell differently."""
    return word.lower().replace("_", "").replace("-", "").replace(" ", "")


def meant(key: str, known: Sequence[str]) -> list[str]:
    """The full names among `known` that a key of others means, or that end in this very word. Those under the key's own
    section come first, and alone if there are any."""
    *before, word = key.split(".")
    target = BY_WORD.get(squeezed(word))
    ends = [name for name in known if target and (name == target or name.endswith(f".{target}"))]
    if not ends:
        ends = [name for name in known if squeezed(name.rsplit(".", 1)[-1]) == squeezed(word)]
    inside = [name for name in ends if before and name.split(".")[: len(before)] == before]
    return list(dict.fromkeys(inside or ends))
