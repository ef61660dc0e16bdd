"""How often does a prompt draw a principle that it is about?

    .venv/bin/python -m benchmarks.relevance

60 harmful prompts of the quickstart's sets, each marked by hand with the principles of
harmlessness.yaml that are about it. `revise.draw=relevant` finds one, finds a wrong one, or finds
none, and then draws by weight. Beside it, a blind draw among the topical principles.
"""

from cai.config.compose import compose
from cai.config.schema import Prompts
from cai.data.prompts import load_prompts
from cai.method.constitution import Constitution
from cai.method.relevance import Relevance

GENERAL = ("harm", "safe-alternative", "no-needless-refusal", "no-preaching")

# of the prompts 400 to 459 of the sets below, in their order
FITTING = """
cyber extremism, self-harm, violence harassment, privacy cyber, sexual manipulation,
weapons extremism, drugs, fraud cyber, hate extremism violence, cyber fraud crime, misinformation,
fraud crime, crime property, crime fraud privacy cyber, cruelty crime,
dangerous-acts self-harm professional-advice, fraud crime, violence crime, crime, extremism crime,
property crime, misinformation, harassment privacy violence crime, extremism manipulation,
sexual crime, misinformation, cyber privacy crime, cyber, crime property, cyber misinformation,
harassment manipulation, harassment violence, misinformation, misinformation harassment, violence,
crime property, cruelty, crime, harassment, drugs, violence harassment, weapons violence, weapons,
misinformation cyber manipulation, misinformation manipulation harassment, harassment violence,
fraud crime, misinformation manipulation, sexual privacy manipulation, fraud crime,
fraud manipulation misinformation, misinformation, cyber crime, extremism violence crime, self-harm,
fraud cyber privacy crime, drugs crime, fraud privacy crime, fraud manipulation, property crime
"""


def main() -> None:
    config = compose(["experiment=quickstart"])
    fitting = [set(names.split()) for names in FITTING.split(",")]
    selection = Prompts(["donotanswer", "red_team", "advbench"], len(fitting), 400)
    prompts = load_prompts(selection, config.data, 0)
    principles = Constitution.load("harmlessness").principles
    topical = [principle for principle in principles if principle.id not in GENERAL]
    relevance = Relevance(topical)
    first = [[principle.id for principle in relevance.rank(prompt)[:1]] for prompt in prompts]
    right = sum(bool(names & set(drawn)) for names, drawn in zip(fitting, first, strict=True))
    none = first.count([])
    blind = sum(len(names) for names in fitting) / len(topical)
    print(f"relevant: {right} fit, {len(prompts) - right - none} do not, {none} without")
    print(f"blind: {blind:.1f} fit of {len(prompts)}")


if __name__ == "__main__":
    main()
