"""The text of `--help`: usage and examples here, options from `simprune.settings`; imports no torch."""

import textwrap

from simprune.core.options import default_of, describe, listed
from simprune.settings import Recipe, Study, group, recipe_table

# The lists of `simprune list`, with the kinds of their parts.
LISTED = {
    "measures": "measure", "functional": "functional", "recipes": "", "models": "model", "data": "data",
    "structures": "structure", "scores": "score", "block_scores": "block_score", "planners": "planner",
    "repairs": "repair", "checks": "check", "corruptions": "corruption", "formats": "format",
    "studies": "study",
}  # fmt: skip
HELP = """\
usage: simprune COMMAND recipe=NAME|FILE.yaml [group=option] [key=value] [-m]

Find what is redundant in a trained network, remove it, and check that the rest behaves like the original.

commands:
  analyze   how redundant each block and channel group is
  plan      what to remove for a budget, as a file you can edit
  compress  the whole path: plan, edit, repair, fine-tune, check; leaves a bundle and a report
  validate  check a bundle against the original again
  export    write a bundle's model for use without simprune: a Hugging Face folder, ONNX, torch.export
  study     experiments: which measure to trust, what similarity says about pruning
  list      measures, scores, planners, recipes and all other parts there are

examples:
  simprune compress recipe=digits
  simprune compress recipe=digits budget.macs=0.3 measure=cka finetune=none
  simprune compress recipe=digits budget=smallest                 the smallest model that passes the checks
  simprune compress recipe=digits budget.macs=0.3,0.5,0.7 -m      one run each, a table and sweep.json at the end
  simprune plan recipe=my/recipe.yaml
  simprune validate bundle=outputs/compress/digits/.../bundle

simprune COMMAND --help tells more, with all options. --cfg job shows the composed recipe and runs nothing.
completion in bash: eval "$(simprune --shell-completion install=bash)"; the same with zsh
exit codes: 0 done, every check passed; 1 a check failed; 2 wrong input or recipe; 3 too little data to decide;
70 an error inside simprune; 130 interrupted. SIMPRUNE_TRACEBACK=1 shows where an error came from."""

DETAILS = {
    "analyze": """\
usage: simprune analyze recipe=NAME|FILE.yaml [measure=ID] [structures=[blocks]] [other=RECIPE|BUNDLE] [key=value] [-m]

Scores every removable block and channel group, and compares all layers. Writes analysis.html (to look at), .json and
.csv, redundancy.json, and figures for papers.
  simprune analyze recipe=digits measure=cka_rbf measure.threshold=0.5
  simprune analyze recipe=digits structures=[blocks] block_score=leave_one_out analysis.measures=[gbs,svcca]
  simprune analyze recipe=digits other=outputs/compress/digits/.../bundle      layer by layer with another network""",
    "plan": """\
usage: simprune plan recipe=NAME|FILE.yaml [budget.macs=0.5] [planner=NAME] [key=value] [-m]

Chooses what to remove for the budget. Writes plan.yaml; edit it, then: simprune compress recipe=... plan=plan.yaml
Budgets: macs, params, bytes, memory (peak activations of one input), latency; shares (0.5, 50%) or amounts (60M, 2MB,
8MiB, 3ms), several at once. Planners: simprune list planners. All of them take planner.protect (names, patterns, or
residual), .round_to, .min_width, .max_share, .blocks (how many go), .batch_size (for latency), and .finalists (5 tries
five plans, from no blocks to blocks alone, or runs of blocks, on held-out inputs, for the best).
  simprune plan recipe=digits budget.macs=0.4 planner=optimal planner.round_to=8
  simprune plan recipe=digits budget.latency=0.7 'planner.protect=[conv1,layer3.*]'

A list of budgets, or --frontier (short for [0.9,0.7,0.5,0.3]), gives the whole curve of accuracy and agreement against
macs and latency, with depth alone, width alone and random plans beside it: frontier.html, .json, .csv, figures, plans.
  simprune plan recipe=digits --frontier
  simprune plan recipe=digits budget=[0.8,0.6,0.4] finetune=none
  simprune plan recipe=digits 'budget={params:[0.8,0.6]}'          shares of params, bytes or latency""",
    "compress": """\
usage: simprune compress recipe=NAME|FILE.yaml [budget.macs=0.5] [plan=FILE] [key=value] [-m]

Plans (or takes your plan), edits, repairs, fine-tunes, checks. Writes a bundle: plan.yaml, model.safetensors,
recipe.yaml, report.json, report.html. The exit code is the verdict's.
  simprune compress recipe=digits reconstruct=bn finetune.epochs=10 control=3

budget=smallest finds the smallest model that passes the checks, by bisection over the share of macs (options: search).
Every step is stored: after an interruption add resume=FOLDER to the same command. If nothing passes there is
no bundle, and the exit code is 1, or 3 for too little data.
  simprune compress recipe=digits budget=smallest check=strict""",
    "validate": """\
usage: simprune validate bundle=FOLDER [recipe=NAME|FILE.yaml] [check=NAME] [junit=FILE.xml] [key=value] [-m]

Rebuilds the bundle's model and checks it against the original on the test data. Without recipe= the one inside the
bundle is used, if it only names simprune's own models and data. Instead of a bundle: the function that builds the
pruned model, and its weights. Writes verdict.json, verdict.html and, by option, JUnit XML. The exit code is the
verdict's: 0 pass, 1 fail, 3 too little data. Check sets: default, strict, robustness, representation, embedding, ...
  simprune validate bundle=outputs/compress/digits/.../bundle check=strict junit=gates.xml
  simprune validate recipe=my.yaml pruned.function=my_model:small pruned.weights=small.safetensors""",
    "export": """\
usage: simprune export bundle=FOLDER [format=transformers|onnx|torch] [to=FOLDER] [recipe=NAME|FILE.yaml] [key=value]

Rebuilds the bundle's model and writes it for use without simprune, with a page about it: a Hugging Face folder (model,
tokenizer, generation settings, model card), an ONNX graph, or a program of torch.export. The files are read back and
run on inputs of the calibration data; the largest difference is printed, and where it is too large, the exit code is 1
and nothing is written. `simprune compress ... format=onnx` does the same at the end. recipe= and pruned. are as for
validate.
  simprune export bundle=outputs/compress/digits/.../bundle format=onnx format.opset=18 to=digits-onnx
  simprune export bundle=my-bundle format={name:transformers,max_shard_size:1GB} to=smaller""",
    "study": """\
usage: simprune study recipe=NAME|FILE.yaml [quick=true] [data=FILE.npz|FOLDER] [key=value]

Runs one study (simprune list studies) on networks that it trains itself, or on yours. Writes findings.json, page.html,
page.md and figures into FOLDER/NAME, or FOLDER/NAME-quick. An interrupted run goes on with the same command. Every
study has options of its own (simprune list studies). FILE.yaml holds study: NAME and options.
  simprune study recipe=grounding quick=true
  simprune study recipe=calibration data=images.npz models=[mine:resnet] seed=1""",
    "list": f"""\
usage: simprune list [{"|".join(LISTED)}]""",
}


def details(command: str) -> str:
    """Usage, examples and every option of a command."""
    lines = [DETAILS[command]]
    if command == "list":
        return lines[0]
    lines.append("\noptions, key=value (the page Options of the documentation has those of the groups):")
    table = Study if command == "study" else Recipe
    for option in listed(Study) if command == "study" else recipe_table(command):
        default = default_of(option)
        if group(option, table):
            default = "{...}"
        elif isinstance(default, tuple):
            default = f"[{','.join(map(str, default))}]" if default else None
        name = f"  {option.name}" if default is None else f"  {option.name}={default}"
        text = f"{name:28} {describe(option)}"
        lines += textwrap.wrap(text, 120, subsequent_indent=" " * 29, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
