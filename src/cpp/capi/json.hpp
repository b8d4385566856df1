// A JSON writer for reports: objects, lists, strings, integers, booleans.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace attile {

class Json {
 public:
  Json& open(char bracket = '{') {
    separate();
    text_ += bracket;
    first_ = true;
    return *this;
  }
  Json& close(char bracket = '}') {
    text_ += bracket;
    first_ = false;
    return *this;
  }
  Json& key(std::string_view name) {
    separate();
    quote(name);
    text_ += ": ";
    first_ = true;
    return *this;
  }
  Json& field(std::string_view name, std::string_view value) { return key(name).string(value); }
  Json& field(std::string_view name, const char* value) { return key(name).string(value); }
  Json& field(std::string_view name, int64_t value) { return key(name).raw(std::to_string(value)); }
  Json& flag(std::string_view name, bool value) { return key(name).raw(value ? "true" : "false"); }
  Json& string(std::string_view value) {
    separate();
    quote(value);
    return *this;
  }
  Json& raw(std::string_view json) {
    separate();
    text_ += json;
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  void separate() {
    if (!first_) text_ += ", ";
    first_ = false;
  }
  void quote(std::string_view value) {
    text_ += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') text_ += '\\';
      if (static_cast<unsigned char>(c) < 0x20) {
        char escape[8];
        std::snprintf(escape, sizeof escape, "\\u%04x", c);
        text_ += escape;
      } else {
        text_ += c;
      }
    }
    text_ += '"';
  }

  std::string text_;
  bool first_ = true;
};

}  // namespace attile
