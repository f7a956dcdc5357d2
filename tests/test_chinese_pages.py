"""docs/zh: each Chinese page has the commands, settings, tables, figures and links of its English page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ZH = ROOT / "docs" / "zh"
NAMES = sorted(path.name for path in ZH.glob("*.md"))
CHINESE = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def english_page(name: str) -> Path:
    return ROOT / "README.md" if name == "README.md" else ROOT / "docs" / name


def split(text: str) -> tuple[list[list[str]], list[str]]:
    """The code blocks of a page (fenced, or indented by four spaces after an empty line) and its other lines."""
    blocks: list[list[str]] = []
    prose: list[str] = []
    fenced = indented = False
    previous = ""
    for line in text.splitlines():
        starts_block = not fenced and not indented and line.startswith("    ") and not previous.strip()
        if line.lstrip().startswith("```"):
            fenced = not fenced
            if fenced:
                blocks.append([])
        elif fenced or (indented and line.startswith("    ")):
            blocks[-1].append(line)
        elif starts_block:
            blocks.append([line])
            indented = True
        else:
            indented = False
            prose.append(line)
        previous = line
    return blocks, prose


def uncommented(line: str) -> str:
    return re.sub(r"(^|\s)#\s.*", "", line).rstrip()


def differences(english: str, chinese: str) -> list[str]:
    """What a reader of the Chinese page would find other than on the English page, apart from the language."""
    found = []
    blocks_en, prose_en = split(english)
    blocks_zh, prose_zh = split(chinese)
    if len(blocks_en) != len(blocks_zh):
        found.append(f"code blocks: {len(blocks_en)} and {len(blocks_zh)}")
    for block_en, block_zh in zip(blocks_en, blocks_zh, strict=False):
        if len(block_en) != len(block_zh):
            found.append(
                f"lines of the code block that starts with {block_en[0]!r}: {len(block_en)} and {len(block_zh)}"
            )
        for line_en, line_zh in zip(map(uncommented, block_en), map(uncommented, block_zh), strict=False):
            if CHINESE.search(line_zh):  # a list of files: names, then what they are in Chinese
                line_en, line_zh = (re.split(r"\s{2,}", line.strip())[0] for line in (line_en, line_zh))
            if line_en != line_zh:
                found.append(f"code: {line_en!r} and {line_zh!r}")

    rows_en, rows_zh = ([line for line in prose if line.startswith("|")] for prose in (prose_en, prose_zh))
    if len(rows_en) != len(rows_zh):
        found.append(f"rows of tables: {len(rows_en)} and {len(rows_zh)}")
    for row_en, row_zh in zip(rows_en, rows_zh, strict=False):
        cells_en, cells_zh = row_en.split("|"), row_zh.split("|")
        if list(map(sorted, map(FIGURE.findall, cells_en))) != list(map(sorted, map(FIGURE.findall, cells_zh))):
            found.append(f"figures of a row: {row_en!r} and {row_zh!r}")

    headings_en, headings_zh = (
        [re.match("#+", line)[0] for line in p if line.startswith("#")] for p in (prose_en, prose_zh)
    )
    if headings_en != headings_zh:
        found.append(f"headings: {headings_en} and {headings_zh}")
    text_en, text_zh = "\n".join(prose_en), "\n".join(prose_zh)
    for what, pattern in (("setting or name", re.compile("`([^`]+)`")), ("figure", FIGURE)):
        ours, theirs = set(pattern.findall(text_zh)), set(pattern.findall(text_en))
        found += [f"{what} missing: {item}" for item in sorted(theirs - ours)]
        found += [f"{what} added: {item}" for item in sorted(ours - theirs)]
    return found


def links(page: Path, text: str) -> set[str]:
    """Link targets relative to the root, with the English page in place of its translation."""
    found = set()
    for target in re.findall(r"\]\(([^):]+)\)", text):
        path, hash_, anchor = target.partition("#")
        full = (page.parent / path).resolve()
        assert full.is_file(), f"{page} links to {target}"
        if full.parent == ZH:
            full = english_page(full.name)
        found.add(str(full.relative_to(ROOT)) + hash_ + anchor)
    return found


def without_the_other_language(page: Path, link: str) -> str:
    title, empty, line, *rest = page.read_text(encoding="utf-8").split("\n")
    assert (empty, line) == ("", link), f"{page}: the third line must be {link}"
    return "\n".join([title, *rest])


@pytest.mark.parametrize("name", NAMES)
def test_chinese_page_is_in_step_with_the_english_page(name):
    page, original = ZH / name, english_page(name)
    back = "../../README.md" if name == "README.md" else f"../{name}"
    chinese = without_the_other_language(page, f"[English]({back})")
    english = without_the_other_language(original, f"[中文]({page.relative_to(original.parent)})")
    assert not differences(english, chinese)
    assert links(page, chinese) == links(original, english)


def test_chinese_pages_link_to_each_other_where_they_can():
    assert "README.md" in NAMES
    for name in NAMES:
        for target in re.findall(r"\]\(\.\./([\w-]+\.md)", (ZH / name).read_text(encoding="utf-8").split("\n", 3)[3]):
            assert target not in NAMES, f"docs/zh/{name} links to the English {target}, which has a translation"


PAGE = "# Run\n\n```\nrun a=1  # one\n```\n\n    go b\n\n| x | y |\n|---|---|\n| two | 2.5 % |\n\nSet `c=3`.\n"
TRANSLATED = PAGE.replace("# one", "# 一").replace("two", "二").replace("Set", "设置").replace("# Run", "# 运行")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("run a=1", "run a=2", "code: 'run a=1' and 'run a=2'"),
        ("go b", "go", "code: '    go b' and '    go'"),
        ("2.5 %", "2.6 %", "figures of a row"),
        ("| 二 | 2.5 % |\n", "", "rows of tables: 3 and 2"),
        ("`c=3`", "`d=3`", "setting or name missing: c=3"),
        ("# 运行", "## 运行", "headings"),
    ],
)
def test_a_difference_is_found(old, new, message):
    assert not differences(PAGE, TRANSLATED)
    assert any(line.startswith(message) for line in differences(PAGE, TRANSLATED.replace(old, new)))
