# attile_isa_levels(sources_variable isa_sources_variable): moves src/cpp/cpu/isa_<level>.cpp and isa_<level>_*.cpp from the first
# list to the second and gives them the flags of their level; those whose level this architecture or this compiler has not are in
# neither. Sets ATTILE_ISA_SUMMARY.

set(attile_isa_flags_avx2 -mavx -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mmovbe -mpopcnt)
set(attile_isa_flags_avx512
  ${attile_isa_flags_avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(attile_isa_flags_avx512bf16 ${attile_isa_flags_avx512} -mavx512bf16)
# Without exceptions the scope of the tiles needs no landing pads, whose weak symbols carry no namespace.
set(attile_isa_flags_amx ${attile_isa_flags_avx512} -mavx512bf16 -mamx-tile -mamx-bf16 -fno-exceptions)

# Tests of AMX kernels on machines without AMX: cpu/amx/tiles.hpp computes what the instructions would, some 30 times slower.
option(ATTILE_AMX_EMULATION "Emulate AMX where AVX-512 has bfloat16 (tests only)" OFF)
if(ATTILE_AMX_EMULATION)
  target_compile_definitions(attile_flags INTERFACE ATTILE_AMX_EMULATED=1)
endif()

function(attile_isa_levels sources_variable isa_sources_variable)
  set(sources ${${sources_variable}})
  set(isa_sources)
  set(levels portable)
  string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
  check_cxx_compiler_flag(-Wno-psabi ATTILE_COMPILER_WNO_PSABI)

  foreach(level amx avx512bf16 avx512 avx2)  # the longest to compile first
    string(TOUPPER ${level} LEVEL)
    set(files ${sources})
    list(FILTER files INCLUDE REGEX "/src/cpp/cpu/isa_${level}(_[a-z0-9_]+)?\\.cpp$")
    set(compiled_in 0)
    if(files AND processor MATCHES "^(x86_64|amd64)$")
      string(JOIN " " flags ${attile_isa_flags_${level}})
      check_cxx_compiler_flag("${flags}" ATTILE_COMPILER_${LEVEL})
      if(ATTILE_COMPILER_${LEVEL})
        set(compiled_in 1)
        list(INSERT levels 1 ${level})
        list(APPEND isa_sources ${files})
        set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${attile_isa_flags_${level}}")
      endif()
    endif()
    if(files)
      list(REMOVE_ITEM sources ${files})
    endif()
    list(APPEND definitions ATTILE_ISA_${LEVEL}=${compiled_in})
  endforeach()

  foreach(source ${sources} ${isa_sources})
    if(source MATCHES "/src/cpp/cpu/.*\\.cpp$")
      set_property(SOURCE ${source} APPEND PROPERTY COMPILE_DEFINITIONS ${definitions})
      if(ATTILE_COMPILER_WNO_PSABI)
        # Vectors that the level cannot hold in a register pass through memory; gcc notes that its ABI for them once changed.
        set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS -Wno-psabi)
      endif()
    endif()
  endforeach()
  set(${sources_variable} ${sources} PARENT_SCOPE)
  set(${isa_sources_variable} ${isa_sources} PARENT_SCOPE)
  string(JOIN " " summary ${levels})
  set(ATTILE_ISA_SUMMARY "${summary} (${CMAKE_SYSTEM_PROCESSOR})" PARENT_SCOPE)
endfunction()
