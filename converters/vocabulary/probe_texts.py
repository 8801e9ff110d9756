"""A few thousand short texts that tokenizers disagree about: scripts, digits, white space, code, emoji, contractions.

The texts and their order are the same everywhere; `special_texts` adds texts with one vocabulary's control tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from random import Random

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and nobody's surprised.",
    "I've said they'll come; she'd rather WE'RE not there, I'M sure you'Ve HEARD 'em. It's rock 'n' roll.",
    "Straße, Größe, Übermut: „Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.“",
    "Portez ce vieux whisky au juge blond qui fume, l'été d'où naît l'œuvre aujourd'hui.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¿Dónde está? ¡Aquí!",
    "À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig. Zażółć gęślą jaźń.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Árvíztűrő tükörfúrógép.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İSTANBUL ısınıyor.",
    "Flygande bäckasiner søker hwila på mjuka tuvor, æblegrød på ø.",
    "Do bạch kim rất quý nên sẽ dùng để lắp vô xương. Tiếng Việt.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ПРИВЕТ, Мир!",
    "Щастя б'ється об берег: ґанок, їжак, єнот. Нещо на български.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΚΑΛΗΜΕΡΑ ΚΟΣΜΕ, ώρα καλή.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עוֹלָם",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. مَرْحَبًا ١٢٣٤٥",
    "ژاله با خنده گفت: می‌خواهم بروم خانه. ۱۲۳۴۵",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। नमस्ते १२३",
    "আমি বাংলায় গান গাই। যাহারা তোমার বিষাইছে বায়ু। ১২৩",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது. தெலుగు భాష",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "កាន់តែពិសេសអាចខលចេញ ភាសាខ្មែរ ລາວ မြန်မာ",
    "დღეს კარგი ამინდია. Բարև աշխարհ։ ሰላም ልዑል",
    "天地玄黄，宇宙洪荒。我想在apple工作1314151天～今天是2024年1月1日！",
    "天地玄黃，宇宙洪荒。臺灣繁體中文「引號」與標點：……——",
    "いろはにほへと ちりぬるを。カタカナも、ｶﾀｶﾅも、漢字も混ざる文章です！",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㅋㅋㅋ ㅠㅠ",
    "ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⴰⵣⵓⵍ བོད་སྐད། සිංහල ଓଡ଼ିଆ ગુજરાતી ਪੰਜਾਬੀ ಕನ್ನಡ മലയാളം",
    "x² + y³ ≤ ∑ᵢ αᵢ·βᵢ ⇒ ∀ε>0 ∃δ: |f(x)−f(y)|<ε; √2≈1.414, ½+¼=¾, №5, 100 °C, Ⅷ, ①②③",
    "Prices: $1,234.56, €99,00, £7.50, ¥1000, ₹500, ₿0.01; 50% off!! #1 @home & co.",
)

_CODE = (
    "def fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * b[i];\n\t}\n\treturn sum;\n}\n",
    "import numpy as np\r\n\r\nx = np.zeros((3, 4), dtype=np.float32)  # zeros\r\n",
    "SELECT * FROM users WHERE id='42' AND name LIKE '%o''brien%';--comment",
    "<div class=\"row\" data-id='7'>&nbsp;<br/></div>\n<!-- end -->\n\n\n",
    '{"key": [1, 2.5e-10, true, null], "nested": {"a\\n": "\\u00e9"}}',
    "#include <vector>\nstd::vector<std::pair<int,char>> v{{1,'a'}}; auto&& [x,y]=v[0];",
    'fn main() -> Result<(), Box<dyn Error>> { let s = r#"raw"#; println!("{s:?}"); Ok(()) }',
    "$ git commit -m 'fix: a/b' && make -j8 2>&1 | tee -a log.txt; echo $? ~/.bashrc",
    "https://user:pw@example.org:8080/a/b.html?x=1&y=%20#frag mailto:a.b+c@d.co",
    "if(!x||y&&z){return;}//TODO\n/* block */\n\tx<<=2;y>>>=1;a??=b?.c;\n",
    "λ x → x ≫= pure; ⟦e⟧ρ ⊢ τ — \\frac{\\partial f}{\\partial x}_{i,j}^{2}",
    "        deeply:\n          indented:\n            - yaml\n            -  item\n",
)

_EMOJI = (
    "🚀", "😀😃😄", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷🇯🇵", "❤️", "☃", "⚡️", "✅", "🦙🦙", "😶‍🌫️", "1️⃣",
    "©®™", "🫠", "ʕ•ᴥ•ʔ", "(╯°□°)╯︵ ┻━┻",
)  # fmt: skip
_PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "«»„“”‘’–—…·•¿¡§¶†‡′″¢£¥€°±×÷" + "、。「」『』（）！？：；，．～・【】"
)
_CONTRACTIONS = (
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    "'T",
    "'Re",
    "'VE",
    "'M",
    "'lL",
    "'D",
    "’s",
    "'x",
    "''s",
)
_SPACES = (
    " ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n", "\n ", "\t\n ",
    "\xa0", "\u3000", "\u2003", "\u200b",
)  # fmt: skip
_WORDS = (
    "a", "I", "the", "word", "Hello", "WORLD", "camelCase", "snake_case", "naïve", "мир", "世界", "12", "3", "x1y2",
    "don't", "…",
)  # fmt: skip


@cache
def texts() -> tuple[str, ...]:
    """Return the corpus: every text once, the kinds of short texts first."""
    return tuple(dict.fromkeys(text for text in _all() if text))


def _all() -> Iterator[str]:
    random = Random(1)
    yield from map(chr, range(0x20, 0x7F))
    yield from _alphabets()
    yield from _numbers()
    for space in _SPACES:
        for n in (1, 2, 3, 7):
            yield space * n
        for word in _WORDS[::2]:
            yield from (space + word, word + space, word + space + word, space * 2 + word + space * 3)
    yield from ("\n" * n + " " * m + "\t" * k + "x" for n in range(4) for m in range(5) for k in range(3))
    yield from (" " * n + "x" for n in range(1, 65))
    for suffix in _CONTRACTIONS:
        for word in ("it", "I", "WE", "они", "l", "", "5", "."):
            yield from (word + suffix, f" {word}{suffix} ", f"{word}{suffix}all")
    yield from (f"{emoji}{tail}" for emoji in _EMOJI for tail in ("", " ", "a", emoji, "\n", "1"))
    for mark in _PUNCTUATION:
        yield from (mark * 2, mark * 3, f" {mark}", f"a{mark}b", f"{mark}a", f"1{mark}2", f"a {mark} b", f"{mark}\n")
    for passage in (*_SENTENCES, *_CODE):
        yield passage
        yield " " + passage.upper()
        words = passage.split(" ")
        yield from (f" {word}" for word in words)
        yield from (" ".join(words[i : i + 3]) for i in range(0, len(words), 2))
    # Random combinations, which no sentence has.
    fragments = [*_WORDS, *_SPACES, *_EMOJI, *_CONTRACTIONS, *_PUNCTUATION, *"0123456789"]
    fragments += [word for sentence in _SENTENCES for word in sentence.split(" ")]
    for _ in range(500):
        yield "".join(fragments[int(random.random() * len(fragments))] for _ in range(2 + int(random.random() * 6)))


def _alphabets() -> Iterator[str]:
    """Yield letters of every script in the sentences, alone and after a space, precomposed and decomposed."""
    letters = sorted(set("".join(_SENTENCES)) | set("äöüÄÖÜßéèêëçñåøÅØżźćńőűşğıİœæđðþÿ"))
    yield from (prefix + letter for letter in letters if letter > "\x7f" for prefix in ("", " "))
    for base in "aeiounAEcs":
        yield from (base + mark for mark in "\u0300\u0301\u0302\u0303\u0308\u030c\u0327")


def _numbers() -> Iterator[str]:
    for n in range(1, 20):
        digits = ("1234567890" * 2)[:n]
        yield from (digits, f" {digits}", f"a{digits}", f"{digits}a", f"{digits} {digits}", f"-{digits}", f"{digits}.")
    yield from (
        "3.14159",
        "1,234,567.89",
        "1e-10",
        "0x1F",
        "2024-01-31",
        "12:34:56",
        "192.168.0.1",
        "1/2",
        "50%",
        "n°3",
    )
    for zero in "٠۰०০๐０":  # digits of other scripts
        digits = "".join(chr(ord(zero) + k) for k in range(10))
        yield from (digits[1], digits[:3], digits[:4], f" {digits}", f"a{digits[2:5]}b")
    yield from ("½", "x²", "Ⅷ", "①②", "٣٫١٤", "三十二", "１２３４")


def special_texts(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return texts with the added tokens `tokens`: alone, with and without spaces, in a row, and as in a chat.

    Of many tokens (Llama 3 has 256) only the first and last sixteen are in the longer texts.
    """
    corpus: list[str] = [*tokens]
    chosen = list(dict.fromkeys([*tokens[:16], *tokens[-16:]]))
    for i, token in enumerate(chosen):
        other = chosen[(i + 1) % len(chosen)]
        corpus += [
            f"{token}Hello", f"Hello{token}", f"Hello{token}world", f"Hello {token} world", f"{token} Hello",
            f"{token}\n\nHello", f"{token}{token}", f"{token}{other}", f"{token} {other}",
            f"{token}user{other}\n\nHi! 你好",
            f"{token[:-1]} {token[-1:]}", f"x{token[1:]}",
        ]  # fmt: skip
    return tuple(dict.fromkeys(text for text in corpus if text))
