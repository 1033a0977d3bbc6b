#include "json.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "error.h"

namespace ddrnet {
namespace {

constexpr int kMaxDepth = 32;

class Parser {
 public:
  explicit Parser(const std::string &text) : text_(text) {}

  Json Document() {
    Json value = Value(0);
    SkipSpace();
    if (at_ != text_.size()) Fail("text after the end");
    return value;
  }

 private:
  [[noreturn]] void Fail(const std::string &what) const {
    throw UserError("not valid JSON at byte " + std::to_string(at_) + " (" + what + ")");
  }

  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void SkipSpace() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  void Expect(char wanted) {
    SkipSpace();
    if (Peek() != wanted) Fail(std::string("'") + wanted + "' expected");
    ++at_;
  }

  bool TakeWord(const char *word) {
    const std::string wanted(word);
    if (text_.compare(at_, wanted.size(), wanted) != 0) return false;
    at_ += wanted.size();
    return true;
  }

  Json Value(int depth) {
    if (depth > kMaxDepth) Fail("nested too deeply");
    SkipSpace();
    Json value;
    switch (Peek()) {
      case '{':
        value.kind = Json::Kind::kObject;
        Members(&value, depth);
        return value;
      case '[':
        value.kind = Json::Kind::kArray;
        Items(&value, depth);
        return value;
      case '"':
        value.kind = Json::Kind::kString;
        value.text = Text();
        return value;
      default:
        break;
    }
    if (TakeWord("null")) return value;
    value.kind = Json::Kind::kBool;
    if (TakeWord("true")) {
      value.boolean = true;
      return value;
    }
    if (TakeWord("false")) return value;
    value.kind = Json::Kind::kNumber;
    value.number = Number();
    return value;
  }

  void Members(Json *object, int depth) {
    Expect('{');
    SkipSpace();
    if (Peek() == '}') {
      ++at_;
      return;
    }
    while (true) {
      SkipSpace();
      const std::string name = Text();
      Expect(':');
      object->members[name] = Value(depth + 1);
      SkipSpace();
      if (Peek() != ',') break;
      ++at_;
    }
    Expect('}');
  }

  void Items(Json *array, int depth) {
    Expect('[');
    SkipSpace();
    if (Peek() == ']') {
      ++at_;
      return;
    }
    while (true) {
      array->items.push_back(Value(depth + 1));
      SkipSpace();
      if (Peek() != ',') break;
      ++at_;
    }
    Expect(']');
  }

  double Number() {
    const size_t begin = at_;
    while (at_ < text_.size() && std::string("+-.0123456789eE").find(text_[at_]) != std::string::npos) ++at_;
    const std::string digits = text_.substr(begin, at_ - begin);
    char *end = nullptr;
    const double number = std::strtod(digits.c_str(), &end);
    if (digits.empty() || *end != '\0' || !std::isfinite(number)) {
      at_ = begin;
      Fail("a value expected");
    }
    return number;
  }

  uint32_t FourHexDigits() {
    uint32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      const char digit = Peek();
      ++at_;
      unit *= 16;
      if (digit >= '0' && digit <= '9') {
        unit += digit - '0';
      } else if (digit >= 'a' && digit <= 'f') {
        unit += digit - 'a' + 10;
      } else if (digit >= 'A' && digit <= 'F') {
        unit += digit - 'A' + 10;
      } else {
        Fail("four hexadecimal digits expected");
      }
    }
    return unit;
  }

  // The code point after "\u", of one UTF-16 unit or a surrogate pair, as UTF-8.
  std::string Escaped() {
    uint32_t point = FourHexDigits();
    if (point >= 0xD800 && point < 0xDC00) {
      if (!TakeWord("\\u")) Fail("second half of a surrogate pair expected");
      const uint32_t low = FourHexDigits();
      if (low < 0xDC00 || low > 0xDFFF) Fail("second half of a surrogate pair expected");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    }
    std::string bytes;
    if (point < 0x80) {
      bytes += static_cast<char>(point);
    } else if (point < 0x800) {
      bytes += static_cast<char>(0xC0 | point >> 6);
      bytes += static_cast<char>(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
      bytes += static_cast<char>(0xE0 | point >> 12);
      bytes += static_cast<char>(0x80 | (point >> 6 & 0x3F));
      bytes += static_cast<char>(0x80 | (point & 0x3F));
    } else {
      bytes += static_cast<char>(0xF0 | point >> 18);
      bytes += static_cast<char>(0x80 | (point >> 12 & 0x3F));
      bytes += static_cast<char>(0x80 | (point >> 6 & 0x3F));
      bytes += static_cast<char>(0x80 | (point & 0x3F));
    }
    return bytes;
  }

  std::string Text() {
    if (Peek() != '"') Fail("a text expected");
    ++at_;
    std::string bytes;
    while (at_ < text_.size() && text_[at_] != '"') {
      const char letter = text_[at_++];
      if (letter != '\\') {
        bytes += letter;
        continue;
      }
      const char kind = Peek();
      ++at_;
      const std::string plain = "\"\\/", named = "bfnrt", meant = "\b\f\n\r\t";
      if (kind == 'u') {
        bytes += Escaped();
      } else if (kind != '\0' && plain.find(kind) != std::string::npos) {
        bytes += kind;
      } else if (kind != '\0' && named.find(kind) != std::string::npos) {
        bytes += meant[named.find(kind)];
      } else {
        Fail("unknown escape");
      }
    }
    if (at_ >= text_.size()) Fail("a text without its end");
    ++at_;
    return bytes;
  }

  const std::string &text_;
  size_t at_ = 0;
};

}  // namespace

Json ParseJson(const std::string &text) { return Parser(text).Document(); }

}  // namespace ddrnet
