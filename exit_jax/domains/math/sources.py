"""Where the problems come from: every source declared once, with its licence, fields, count and checksums.

Checked in November 2026 against the hub's pages, or public projects that pin the same revisions, as stored copies show
them; no file could be downloaded and hashed here. The comments say what rests on what.
"""

import dataclasses

TRAIN, VALIDATION = "train", "validation"
MATH_SUBJECTS = (  # 1744 + 771 + 870 + 1295 + 869 + 1205 + 746 = 7500 train problems
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of one split, as the hub has it; a file of the user's may use the plain field names as well."""

    name: str  # a file of the user's bears it: <name>.jsonl, .json or .parquet
    split: str
    repo: str  # dataset on the hub
    revision: str  # commit
    files: tuple[str, ...]  # paths in the repository
    sha256: tuple[str, ...]  # sum of each file; "" where unknown: the sum found is recorded, and checked the next time
    license: str  # as the hub's page declares it
    count: int  # rows of all files that ``keep`` lets through; 0 where unknown
    problem: str = "problem"
    answer: str = "answer"  # "" where there is none: the last \boxed{} of the solution is taken
    solution: str = "solution"
    context: str = ""  # field put before the problem where it holds text
    keep: tuple[tuple[str, str], ...] = ()  # (field, regex): rows without a match are left out; absent fields match


SOURCES = (
    Source(
        name="deepscaler",
        split=TRAIN,
        repo="agentica-org/DeepScaleR-Preview-Dataset",
        revision="b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
        files=("deepscaler.json",),
        sha256=("4e9e7b18248d982b4498a54a6bdb37b1bb653cf5f77bc309fa67a6c2533c8ba4",),  # the hub's page of the file
        license="mit",
        count=0,  # the page says "40.3k"; a thread there reports 6 rows without an answer
    ),
    Source(
        name="numina",
        split=TRAIN,
        repo="AI-MO/NuminaMath-1.5",
        revision="1b05109f9e5c1ad06c0663519502416c30b300f8",
        files=tuple(f"data/train-0000{shard}-of-00003.parquet" for shard in range(3)),
        sha256=(  # two projects that pin them; the third also by the hub's page
            "1e37cedcc5104c0d5a9afbf8b26328a59d7005cd37c2bd08352419f5f0e03214",
            "bc48fdddc1ab4e559727ad4f1f03b0263785c1c16b7964fb885fba07e18d6a39",
            "951aa899fe2a1b64f5b40c6636372d35b9db4f0b9c922e874d4bf357db64da66",
        ),
        license="apache-2.0",
        count=0,  # 896,215 rows before ``keep``
        keep=(  # judged valid, made by people, and with a final answer that is neither a proof nor a letter to guess
            ("problem_is_valid", r"^Yes$"),
            ("solution_is_valid", r"^Yes$"),
            ("synthetic", r"^False$"),
            ("question_type", r"^math-word-problem$"),
            ("answer", r"^(?!\s*(proof|notfound)\s*$)"),
        ),
    ),
    Source(
        name="math_train",
        split=VALIDATION,
        repo="EleutherAI/hendrycks_math",
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
        files=tuple(f"{subject}/train-00000-of-00001.parquet" for subject in MATH_SUBJECTS),
        sha256=("",) * len(MATH_SUBJECTS),  # not found anywhere
        license="mit",
        count=7500,
        answer="",
    ),
    Source(
        name="math500",
        split="math500",
        repo="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        files=("test.jsonl",),
        sha256=("35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",),  # a project that pins it
        license="not declared (MATH, which it is drawn from: mit)",
        count=500,
    ),
    *(
        # The problems were reworded by Project Numina to have integer answers, and those that could not be were dropped:
        # 83 of 100 are left. A public card counts 22 + 21 of 2022 (12A, 12B) and 22 + 18 of 2023.
        Source(
            name=f"amc12_{year}",
            split=f"amc12_{year}",
            repo="AI-MO/aimo-validation-amc",
            revision="69d78a4a2c840e82d69af6bc742bda09005f6316",
            files=("data/train-00000-of-00001.parquet",),
            sha256=("4de056fd006062cee46e3900727dd5d00094b8592ed0bfd6b5dfae2267f72dd7",),  # a project that pins it
            license="apache-2.0",
            count=count,
            keep=(
                ("url", rf"{year}_AMC_12"),
            ),  # https://artofproblemsolving.com/wiki/index.php/2022_AMC_12A_Problems/…
        )
        for year, count in ((2022, 43), (2023, 40))
    ),
    Source(
        name="aime_2024",
        split="aime_2024",
        repo="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        files=("data/train-00000-of-00001.parquet",),
        sha256=("26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf",),  # a project that pins it
        license="not declared",
        count=30,
    ),
    Source(
        name="aime_2025",
        split="aime_2025",
        repo="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        files=("test.jsonl",),
        sha256=("b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",),  # two projects that pin it
        license="not declared on the page seen, which is of an older revision",
        count=30,
    ),
    Source(
        name="minerva",
        split="minerva",
        repo="math-ai/minervamath",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        files=("test.jsonl",),
        sha256=("",),  # not found anywhere
        license="not declared",
        count=272,
        problem="question",
    ),
    Source(
        name="olympiadbench",
        split="olympiadbench_text",
        repo="Hothan/OlympiadBench",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        files=("OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",),  # open-ended, text only, English
        sha256=("",),  # not found anywhere
        license="apache-2.0",
        count=674,
        problem="question",
        answer="final_answer",  # a list of texts, as the solution
        context="context",
        keep=(  # all of that file; for those who give a file of the whole set
            ("question_type", r"^Open-ended$"),
            ("modality", r"^Text-only$"),
            ("subject", r"^Math$"),
            ("language", r"^English$"),
        ),
    ),
)
TEST_SPLITS = tuple(source.split for source in SOURCES if source.split not in (TRAIN, VALIDATION))
SPLITS = (TRAIN, VALIDATION, *TEST_SPLITS)
