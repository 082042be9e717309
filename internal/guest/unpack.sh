# Unpacks an archive from standard input and puts what is in it in place at the end.
# Arguments: the target, whether it has to be a directory, whether files are
# replaced, whether owners are kept, the name of a directory to unpack into, the name
# of the file that is in whole archives only.
fail() { printf 'mvm-cp:%s:%s:%s\n' "$1" "$2" "$3" >&2; exit 41; }
nodir() { fail destination-not-directory "$1" "$2"; }
unset CDPATH
command -v tar >/dev/null || fail other 'the guest has no tar' ''
target=$1 dir=$2 force=$3 owners=$4 stage=$5 end=$6 rename=
case $target in */) dir=1 ;; esac
if [ -d "$target" ]; then
	base=$target
elif [ -e "$target" ]; then
	[ "$dir" = 0 ] || nodir 'it is not a directory' "$target"
	target=$(readlink -f "$target") || fail other 'it cannot be resolved' "$1"
	base=${target%/*}/ rename=${target##*/}
else
	[ "$dir" = 0 ] || nodir 'there is no such directory' "$target"
	base=${target%/*}/ rename=${target##*/}
	[ -d "$base" ] || nodir 'there is no such directory' "${base%/}"
fi
cd "$base" || fail other 'it cannot be entered' "$base"
trap 'rm -rf "$stage"' EXIT
trap 'exit 1' HUP INT TERM PIPE
umask 077
mkdir "$stage" 2>/dev/null || fail other 'it cannot be written to' "$base"
flags=-xpof
[ "$owners" = 0 ] || flags=-xpf
tar "$flags" - -C "$stage" || fail other "the guest's tar could not unpack it" ''
[ -e "$stage/$end" ] || fail other 'the transfer broke off' ''
rm -f "$stage/$end"

# each calls a function with every entry of a directory in the stage.
each() {
	do=$1
	for e in "$stage/$2"* "$stage/$2".[!.]* "$stage/$2"..?*; do
		if [ -e "$e" ] || [ -L "$e" ]; then "$do" "$e" "${e#"$stage/"}"; fi
	done
}
isdir() { [ -d "$1" ] && [ ! -L "$1" ]; }
only=
only() { [ -z "$only" ] || fail other 'the sender sends more than what was asked for' ''; only=$1; }
if [ -n "$rename" ]; then
	each only ''
	[ "${only##*/}" = "$rename" ] || mv -- "$only" "$stage/$rename" || fail other 'it cannot be renamed' "$target"
fi
check() {
	if [ ! -e "$2" ] && [ ! -L "$2" ]; then return; fi
	if isdir "$1"; then
		isdir "$2" || nodir 'it is not a directory' "$PWD/$2"
		each check "$2/"
	elif isdir "$2"; then
		fail destination-exists 'it is a directory' "$PWD/$2"
	elif [ "$force" = 0 ]; then
		fail destination-exists 'it exists' "$PWD/$2"
	fi
}
put() {
	if isdir "$1" && isdir "$2"; then
		each put "$2/"
		return
	fi
	[ ! -L "$2" ] || rm -f -- "$2"
	mv -f -- "$1" "$2" || fail other 'it cannot be put in place' "$PWD/$2"
}
each check ''
each put ''
